//! `tide reload`: has a gateway load its configuration again, as SIGHUP does, and says what came of it.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::operator::Operator;
use crate::stdout;

/// The arguments of `tide reload`.
///
/// The gateway loads its configuration, keys and certificates again. All of it is checked first: where something is wrong, or
/// only a restart can change it, nothing changes, and the error names it. Connections stay.
#[derive(Args, Debug)]
pub(crate) struct ReloadArgs {
    /// Print the gateway's answer unchanged
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

/// Asks the gateway to reload.
///
/// # Errors
/// It can't be asked, or it refuses.
pub(crate) fn run(args: &ReloadArgs) -> Result<()> {
    let answer = args.operator.post("/reload", b"")?;
    stdout::print(|out| {
        if args.json { writeln!(out, "{answer}") } else { writeln!(out, "{}", text_of(&answer)) }
    })
}

/// What an answer says, a line for each change.
fn text_of(answer: &str) -> String {
    let Ok(parsed) = serde_json::from_str::<Value>(answer) else { return answer.to_owned() };
    match parsed["result"].as_str() {
        Some("unchanged") => {
            "nothing has changed: the configuration and the files that it names are the same as before".to_owned()
        }
        Some("applied") => {
            let texts = |key: &str| parsed[key].as_array().cloned().unwrap_or_default();
            let mut lines = vec![format!("applied, generation {}:", parsed["generation"])];
            lines.extend(texts("changes").iter().filter_map(Value::as_str).map(|change| format!("  {change}")));
            if parsed["certificates"] == "changed" {
                lines.push("new connections get the new certificates".to_owned());
            }
            let unconfirmed = texts("unconfirmed");
            if !unconfirmed.is_empty() {
                let shards: Vec<_> = unconfirmed.iter().map(Value::to_string).collect();
                lines.push(format!(
                    "these shards have not applied it yet: {}. They do when they answer again: see /healthz",
                    shards.join(", ")
                ));
            }
            lines.join("\n")
        }
        _ => answer.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_has_its_text() {
        let unchanged = text_of(r#"{"result":"unchanged","generation":0,"changes":[]}"#);
        assert!(unchanged.contains("the same as before"), "{unchanged}");
        let applied = r#"{"result":"applied","generation":2,"changes":["limits.commands_max: 1 -> 2"],
            "certificates":"changed","unconfirmed":[1]}"#;
        let applied = text_of(applied);
        for part in [
            "generation 2",
            "limits.commands_max: 1 -> 2",
            "new certificates",
            "not applied it yet: 1",
        ] {
            assert!(applied.contains(part), "{applied}");
        }
        assert_eq!(text_of("{}"), "{}");
    }
}
