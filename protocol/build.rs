//! Compiles the `.proto` files with protox, so that no protobuf compiler is needed on the machine.

use std::error::Error;

const PROTOS: [&str; 3] =
    ["proto/tidegate.proto", "proto/tidegate_business.proto", "proto/tidegate_demo.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
