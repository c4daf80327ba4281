//! `tide cluster`: the gateways that serve the same clients, and how to even them out.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::argument::{self, whole};
use crate::count::{counted, grouped};
use crate::operator::{self, Operator, Token};
use crate::stdout;

/// The arguments of `tide cluster`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: Option<ClusterCommand>,
    /// Print the gateway's answer, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    operator: Operator,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Have a gateway that is too full send clients to the others, at a pace
    #[command(
        long_about = "Have a gateway that is too full send clients to the others, at a pace.\n\n\
        The gateway closes connections with 108 and a spread wait; clients reconnect where the load balancer in front of the \
        gateways puts them. Let it prefer the gateway with the fewest connections: one that takes turns sends some of them \
        back."
    )]
    Rebalance(RebalanceArgs),
}

#[derive(Args, Debug)]
struct RebalanceArgs {
    /// The operators' addresses of the gateways that send clients away [default: the one of --admin]
    #[arg(long = "gateway", value_name = "HOST:PORT", num_args = 1.., value_parser = argument::place)]
    gateways: Vec<String>,
    /// Only tell how many clients would be sent away
    #[arg(long, conflicts_with = "cancel")]
    dry_run: bool,
    /// End what was started
    #[arg(long, conflicts_with_all = ["count", "per_second", "spare_s"])]
    cancel: bool,
    /// Clients that each gateway sends away [default: what it has beyond its share]
    #[arg(long, value_name = "N", value_parser = whole(1..=1_000_000_000_u64))]
    count: Option<u64>,
    /// Clients that each gateway sends away in a second [default: 200]
    #[arg(long, value_name = "N", value_parser = whole(1..=20_000_u64))]
    per_second: Option<u64>,
    /// Clients that came less than so many seconds before the start stay [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = whole(0..=3_600_u64))]
    spare_s: Option<u64>,
    /// Print each gateway's answer unchanged
    #[arg(long)]
    json: bool,
    /// The address of the gateway's operators' HTTP
    #[arg(long, default_value = operator::ADMIN, value_name = "HOST:PORT", value_parser = argument::place)]
    admin: String,
    #[command(flatten)]
    token: Token,
}

/// Prints the gateways, or starts or ends a rebalance.
///
/// # Errors
/// A gateway can't be reached, or it refuses.
pub(crate) fn run(args: &ClusterArgs) -> Result<()> {
    if let Some(ClusterCommand::Rebalance(args)) = &args.command {
        return rebalance(args);
    }
    let cluster = args.operator.get("/cluster")?;
    if args.json {
        return print(&serde_json::to_string_pretty(&cluster)?);
    }
    print(&page(&cluster))
}

fn rebalance(args: &RebalanceArgs) -> Result<()> {
    let default = [args.admin.clone()];
    let gateways = if args.gateways.is_empty() { &default[..] } else { &args.gateways };
    let mut failed = 0;
    for gateway in gateways {
        match rebalance_one(args, gateway) {
            Ok(line) => print(&line)?,
            // The others are still asked.
            Err(error) if gateways.len() > 1 => {
                stdout::print_stderr(&format!("{gateway}: {error:#}"));
                failed += 1;
            }
            Err(error) => return Err(error),
        }
    }
    anyhow::ensure!(failed == 0, "{} did not do it", counted(failed, "gateway"));
    Ok(())
}

fn rebalance_one(args: &RebalanceArgs, gateway: &str) -> Result<String> {
    let operator = Operator::new(gateway.to_owned(), args.token.clone());
    let path = "/cluster/rebalance";
    let answer = if args.cancel {
        operator.delete(path)?
    } else {
        operator.post(&format!("{path}{}", query(args)), &[])?
    };
    if args.json {
        return Ok(answer);
    }
    let answer: Value = serde_json::from_str(&answer)
        .with_context(|| format!("the gateway's answer is no JSON: {answer}"))?;
    Ok(format!("{gateway}: {}", if args.cancel { cancelled(&answer) } else { ordered(&answer) }))
}

fn query(args: &RebalanceArgs) -> String {
    let numbers =
        [("count", args.count), ("per_second", args.per_second), ("spare_s", args.spare_s)];
    let mut query = String::new();
    let mut add = |name: &str, value: String| {
        let separator = if query.is_empty() { '?' } else { '&' };
        query.push(separator);
        query.push_str(&format!("{name}={value}"));
    };
    for (name, value) in numbers {
        value.into_iter().for_each(|value| add(name, value.to_string()));
    }
    if args.dry_run {
        add("dry_run", "true".to_owned());
    }
    query
}

/// What an order came to, in a line.
fn ordered(answer: &Value) -> String {
    let number = |name: &str| answer[name].as_u64().unwrap_or(0);
    let count = number("count");
    let share = match answer["connections"].as_u64() {
        Some(connections) => format!(
            "it has {}, and its share is {}",
            counted(connections, "connection"),
            grouped(number("fair"))
        ),
        None => "as ordered".to_owned(),
    };
    if count == 0 {
        let is_too_full = number("surplus") > 0 || answer["connections"].is_null();
        let spared = match answer["movable"].as_u64() {
            Some(0) if is_too_full => {
                format!("; all of its clients came in the last {} s (--spare-s)", number("spare_s"))
            }
            _ => String::new(),
        };
        return format!("sends nobody away: {share}{spared}");
    }
    let verb = if answer["dry_run"] == true { "would send" } else { "sends" };
    let seconds = count.div_ceil(number("per_second").max(1));
    format!(
        "{verb} {} away, in about {}, without those that came in the last {} s: {share}",
        counted(count, "client"),
        counted(seconds, "second"),
        number("spare_s")
    )
}

fn cancelled(answer: &Value) -> String {
    match answer["state"].as_str() {
        None => "there was no rebalance".to_owned(),
        Some(state) => format!(
            "{state}: {} of {} were sent away",
            grouped(answer["sent"].as_u64().unwrap_or(0)),
            counted(answer["count"].as_u64().unwrap_or(0), "client")
        ),
    }
}

/// What people are shown.
fn page(cluster: &Value) -> String {
    let mut page = String::new();
    let mut is_away = false;
    for link in cluster["redis"].as_array().into_iter().flatten() {
        is_away |= link["up"] != true;
        page.push_str(&redis_line(link));
        page.push('\n');
    }
    if is_away {
        let age = match cluster["gateways_age_ms"].as_u64() {
            Some(ms) => format!("the figures of the other gateways are {} old", span(ms)),
            None => "the other gateways are not known".to_owned(),
        };
        let _ = writeln!(page, "Redis is away: this gateway serves its own clients, and {age}.");
    }
    page.push_str(&other_keys(cluster));
    page.push('\n');
    page.push_str(&table(cluster));
    if let Some(rebalance) = cluster["rebalance"].as_object() {
        let number = |name: &str| grouped(rebalance[name].as_u64().unwrap_or(0));
        let _ = write!(
            page,
            "\nrebalance of this gateway: {}, {} of {} clients sent away\n",
            rebalance["state"].as_str().unwrap_or_default(),
            number("sent"),
            number("count")
        );
    }
    page
}

/// Which gateways make tickets with another key than this one; empty: none.
fn other_keys(cluster: &Value) -> String {
    let gateways = cluster["gateways"].as_array().map_or(&[][..], Vec::as_slice);
    let key = |gateway: &Value| gateway["ticket_key"].as_str().unwrap_or_default().to_owned();
    let own = gateways.iter().find(|gateway| gateway["id"] == cluster["gateway"]).map(key);
    let Some(own) = own.filter(|own| !own.is_empty()) else { return String::new() };
    let is_other = |gateway: &&Value| {
        gateway["gone_for_ms"].is_null() && !key(gateway).is_empty() && key(gateway) != own
    };
    let others = gateways.iter().filter(is_other).filter_map(|gateway| gateway["listen"].as_str());
    let others: Vec<_> = others.collect();
    if others.is_empty() {
        return String::new();
    }
    format!(
        "Other ticket key than this gateway's: {}. Clients that change between them lose their rooms. Give all the same \
        rooms.ticket_key_file.\n",
        others.join(", ")
    )
}

fn redis_line(link: &Value) -> String {
    let text = |name: &str| link[name].as_str().unwrap_or_default();
    let since = span(link["since_ms"].as_u64().unwrap_or(0));
    let mut line = format!("Redis for {} at {}: ", text("concern"), text("url"));
    if link["up"] == true {
        let _ = write!(line, "up for {since}");
        if let Some(us) = link["round_trip_us"].as_u64() {
            #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
            let ms = us as f64 / 1_000.0;
            let _ = write!(line, ", a round trip takes {ms:.1} ms");
        }
    } else {
        let _ = write!(line, "AWAY for {since}");
        if !text("last_error").is_empty() {
            let _ = write!(line, ": {}", text("last_error"));
        }
    }
    line
}

const HEADS: [&str; 12] = [
    "gateway",
    "clients",
    "operators",
    "version",
    "state",
    "up",
    "connections",
    "full",
    "users",
    "rooms",
    "behind",
    "waiting",
];

/// Columns that are text, and stand on the left.
const TEXTS: usize = 5;

/// The gateways, and their sums.
fn table(cluster: &Value) -> String {
    let own = cluster["gateway"].as_str().unwrap_or_default();
    let gateways = cluster["gateways"].as_array().map_or(&[][..], Vec::as_slice);
    // The clocks of the machines may differ; roughly is enough.
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now_ms = u64::try_from(now_ms).unwrap_or(u64::MAX);
    let mut rows = vec![HEADS.map(str::to_owned)];
    rows.extend(gateways.iter().map(|gateway| row(gateway, own, now_ms)));
    let total = |name: &str| grouped(cluster["totals"][name].as_u64().unwrap_or(0));
    let mut sums = HEADS.map(|_| String::new());
    sums[0] = format!("{} alive, {} gone", total("alive"), total("gone"));
    sums[6] = total("connections");
    sums[7] = full(&cluster["totals"]);
    sums[8] = total("users");
    sums[10] = total("rooms_behind");
    sums[11] = total("pushes_waiting");
    rows.push(sums);
    let widths: Vec<_> = (0..HEADS.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column < TEXTS {
                true => write!(line, "{cell:width$}  "),
                false => write!(line, "{cell:>width$}  "),
            };
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    table
}

fn row(gateway: &Value, own: &str, now_ms: u64) -> [String; 12] {
    let text = |name: &str| gateway[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| gateway[name].as_u64().unwrap_or(0);
    let marked = if gateway["id"] == own { " (this)" } else { "" };
    let name = format!("{} {}{marked}", text("id"), text("host"));
    let mut row = HEADS.map(|_| String::new());
    [row[0], row[1], row[2], row[3]] =
        [name, text("listen"), text("admin_listen"), text("version")];
    // The last figures of a gateway no longer count once it is gone.
    if let Some(ms) = gateway["gone_for_ms"].as_u64() {
        row[4] = format!("GONE for {}", span(ms));
        return row;
    }
    row[4] = match (&*text("state"), gateway["accepting"] == true) {
        ("ready", false) => "full".to_owned(),
        (state, _) => state.to_owned(),
    };
    row[5] = match now_ms.checked_sub(number("start_time_unix_ms")) {
        Some(up) => span(up),
        None => String::new(),
    };
    let figures = ["connections", "users", "rooms", "rooms_behind", "pushes_waiting"];
    let [connections, users, rooms, behind, waiting] = figures.map(|name| grouped(number(name)));
    [row[6], row[8], row[9], row[10], row[11]] = [connections, users, rooms, behind, waiting];
    row[7] = full(gateway);
    row
}

/// How full a gateway is.
fn full(figures: &Value) -> String {
    let number = |name: &str| figures[name].as_u64().unwrap_or(0);
    match number("connections_max") {
        0 => String::new(),
        max => format!("{}%", number("connections").saturating_mul(100) / max),
    }
}

/// A length of time in its largest unit: `35 s`, `12 min`, `7 h`, `3 d`.
fn span(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0..120 => format!("{s} s"),
        120..7_200 => format!("{} min", s / 60),
        7_200..172_800 => format!("{} h", s / 3_600),
        _ => format!("{} d", s / 86_400),
    }
}

fn print(text: &str) -> Result<()> {
    stdout::print(|out| writeln!(out, "{}", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gateway(id: &str, connections: u64, gone_for_ms: Option<u64>) -> Value {
        json!({
            "id": id, "host": "host", "listen": "10.0.0.1:7400", "admin_listen": "127.0.0.1:7401", "version": "0.1.0",
            "state": "ready", "accepting": true, "connections": connections, "connections_max": 2000,
            "users": 5, "rooms": 3, "rooms_behind": 1, "pushes_waiting": 0, "gone_for_ms": gone_for_ms,
            "valid_until_ms": 8_000_000, "start_time_unix_ms": 1_000_000,
        })
    }

    fn cluster(up: bool) -> Value {
        json!({
            "gateway": "aaaa",
            "redis": [{
                "concern": "pushes", "url": "redis://host:6379", "up": up, "since_ms": 35_000,
                "last_error": "refused", "round_trip_us": 240
            }],
            "gateways": [gateway("aaaa", 1_500, None), gateway("bbbb", 0, None), gateway("cccc", 7, Some(300_000))],
            "gateways_age_ms": 4_000,
            "totals": {"alive": 2, "gone": 1, "connections": 1500, "connections_max": 4000, "users": 10, "rooms_behind": 2},
            "rebalance": {"state": "running", "sent": 3, "count": 1000},
        })
    }

    #[test]
    fn the_table_is_aligned_and_marks_gateways_that_are_gone() {
        let page = page(&cluster(true));
        let lines: Vec<_> = page.lines().collect();
        assert_eq!(
            lines[0],
            "Redis for pushes at redis://host:6379: up for 35 s, a round trip takes 0.2 ms"
        );
        let rows = &lines[2..7];
        let end =
            |row: &str, text: &str| row.find(text).unwrap_or_else(|| panic!("{row}")) + text.len();
        assert_eq!(end(rows[0], "connections"), end(rows[1], "1,500"), "{page}");
        assert_eq!(end(rows[0], "connections"), end(rows[4], "1,500"), "{page}");
        assert!(rows[1].starts_with("aaaa host (this)") && rows[1].contains("75%"), "{page}");
        assert!(rows[3].contains("GONE for 5 min") && rows[3].ends_with("5 min"), "{page}");
        assert!(rows[4].starts_with("2 alive, 1 gone") && rows[4].contains("37%"), "{page}");
        assert!(page.contains("running, 3 of 1,000 clients"), "{page}");
    }

    #[test]
    fn a_redis_that_is_away_is_reported_first() {
        let page = page(&cluster(false));
        assert!(
            page.starts_with(
                "Redis for pushes at redis://host:6379: AWAY for 35 s: refused\nRedis is away: "
            ),
            "{page}"
        );
        assert!(page.contains("are 4 s old"), "{page}");
    }

    #[test]
    fn gateways_with_another_ticket_key_are_named() {
        let gateway = |id: &str, key: &str, gone: Value| json!({"id": id, "listen": format!("{id}:7400"), "ticket_key": key, "gone_for_ms": gone});
        let same = [
            gateway("a", "1", Value::Null),
            gateway("b", "1", Value::Null),
            gateway("c", "2", 5.into()),
            gateway("d", "", Value::Null),
        ];
        let page_of = |gateways: &[Value]| page(&json!({"gateway": "a", "gateways": gateways}));
        assert!(!page_of(&same).contains("Other ticket key"));
        let page = page_of(&[&same[..], &[gateway("e", "2", Value::Null)]].concat());
        assert!(page.contains("Other ticket key than this gateway's: e:7400. "), "{page}");
    }

    #[test]
    fn a_started_rebalance_is_reported_in_one_line() {
        let answer = json!({
            "dry_run": false, "count": 1_000, "per_second": 300, "spare_s": 60, "connections": 3_000, "fair": 2_000
        });
        let said = "sends 1,000 clients away, in about 4 seconds, without those that came in the last 60 s: it has 3,000 \
            connections, and its share is 2,000";
        assert_eq!(ordered(&answer), said);
        let nobody = json!({"count": 0, "connections": 1, "fair": 2});
        assert_eq!(ordered(&nobody), "sends nobody away: it has 1 connection, and its share is 2");
        let spared = json!({
            "count": 0, "connections": 3, "fair": 2, "surplus": 1, "movable": 0, "spare_s": 60
        });
        assert_eq!(
            ordered(&spared),
            "sends nobody away: it has 3 connections, and its share is 2; all of its clients came in the last 60 s \
            (--spare-s)"
        );
        assert_eq!(cancelled(&Value::Null), "there was no rebalance");
    }
}
