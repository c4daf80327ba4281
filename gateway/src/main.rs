//! The `tidegate` binary: the gateway with the demo backend in the process.

use std::process::ExitCode;

use tidegate_backend::demo::Demo;

fn main() -> ExitCode {
    tidegate::run("", |builder| builder.handler("demo", Demo::default()))
}
