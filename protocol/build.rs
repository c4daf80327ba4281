//! Compiles the `.proto` files with protox, so that no protobuf compiler is needed on the machine.

use std::error::Error;

const PROTOS: [&str; 3] =
    ["proto/tidegate.proto", "proto/tidegate_business.proto", "proto/tidegate_demo.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    // prost derives it for every message without a list of messages.
    for message in ["tidegate.v1.Session", "tidegate.v1.Resume"] {
        config.message_attribute(message, "#[derive(Eq, Hash)]");
    }
    config.compile_fds(descriptors)?;
    Ok(())
}
