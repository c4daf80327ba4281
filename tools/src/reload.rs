//! `tide reload`: has a gateway read its certificates again, as SIGHUP does, and tells what came of it.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::operator::Operator;
use crate::stdout;

/// The arguments of `tide reload`.
///
/// Connections stay. New ones get the new certificates. Where a file can't be used, nothing changes, and the error
/// names the file.
#[derive(Args, Debug)]
pub(crate) struct ReloadArgs {
    /// Print the gateway's answer unchanged
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

/// Asks the gateway to read its certificates again.
///
/// # Errors
/// It can't be asked, or its files can't be used.
pub(crate) fn run(args: &ReloadArgs) -> Result<()> {
    let answer = args.operator.post("/reload", b"")?;
    stdout::print(|out| {
        if args.json { writeln!(out, "{answer}") } else { writeln!(out, "{}", told(&answer)) }
    })
}

fn told(answer: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(answer).ok();
    match parsed.as_ref().and_then(|value| value["certificates"].as_str()) {
        Some("changed") => "the certificates have changed: new connections get them".to_owned(),
        Some("unchanged") => "the certificates are the same as before".to_owned(),
        Some("none") => "this gateway has no certificates: no listener of it has TLS".to_owned(),
        _ => answer.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_told() {
        assert!(told(r#"{"certificates":"changed"}"#).contains("new connections"));
        assert!(told(r#"{"certificates":"unchanged"}"#).contains("the same"));
        assert!(told(r#"{"certificates":"none"}"#).contains("no certificates"));
        assert_eq!(told("{}"), "{}");
    }
}
