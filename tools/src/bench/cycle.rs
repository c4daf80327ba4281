//! stub
pub(super) fn run(_: &super::args::ConnectArgs) -> anyhow::Result<()> {
    Ok(())
}
