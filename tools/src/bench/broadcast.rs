//! stub
pub(super) fn run(_: &super::args::BroadcastArgs) -> anyhow::Result<()> {
    Ok(())
}
