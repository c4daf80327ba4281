//! The scenarios against a small server, correct or faulty.

mod descriptors;
mod server;

use clap::Parser as _;

use server::{Fault, Server};

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    bench: super::BenchArgs,
}

const STORM: &str = "storm --connections 6 --warmup 50ms --duration 200ms";
const SHOW: &str = "show --connections 20 --arrive 50ms --warmup 50ms --duration 300ms \
                    --question-every 100ms --answer-share 0.5 --leave 50ms";

/// Runs a scenario for a short time, and for longer where the machine was too busy to measure anything in that
/// time.
fn bench(fault: Fault, arguments: &str) -> anyhow::Result<()> {
    let short = run(fault, arguments);
    match &short {
        Err(error) if error.to_string().contains("nothing was measured") => {
            let longer = arguments.replace("--duration 200ms", "--duration 3s");
            run(fault, &longer.replace("--duration 300ms", "--duration 3s"))
        }
        _ => short,
    }
}

fn run(fault: Fault, arguments: &str) -> anyhow::Result<()> {
    let server = Server::start(fault);
    let mut line = format!("tide {arguments} --connect {}", server.address);
    // `connect` waits until the server's memory has settled, which it never does here: other tests run in the
    // same process.
    if !arguments.starts_with("connect ") || arguments.contains("--cycle") {
        line += &format!(" --pid {}", std::process::id());
    }
    super::run(Cli::try_parse_from(line.split_whitespace())?.bench).map(drop)
}

/// The error of a run that measures a process against an address at which another process listens, or none.
fn error_for_pid(pid: u32, address: std::net::SocketAddr) -> String {
    let line = format!("tide request {SHORT} --connect {address} --pid {pid}");
    let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
    format!("{:#}", super::run(cli.bench).unwrap_err())
}

#[test]
fn a_process_that_is_not_the_server_is_not_measured() {
    let server = Server::start(Fault::None);
    let mut child = std::process::Command::new("sleep").arg("3600").spawn().unwrap();
    let asleep = error_for_pid(child.id(), server.address);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(asleep.contains("is not a gateway: it listens on no TCP port"), "{asleep}");
    // Where nothing listens, that is the error.
    let mut elsewhere = server.address;
    elsewhere.set_ip([127, 0, 0, 2].into());
    let said = error_for_pid(std::process::id(), elsewhere);
    assert!(said.contains(&format!("no gateway listens on {elsewhere}")), "{said}");
}

const SHORT: &str = "--connections 5 --warmup 50ms --duration 200ms";

#[test]
fn requests_in_closed_and_open_loops_are_answered_correctly() {
    bench(Fault::None, &format!("request {SHORT} --depth 3 --json")).unwrap();
    bench(Fault::None, &format!("request {SHORT} --rate 500 --bytes 3")).unwrap();
    bench(Fault::None, &format!("request {SHORT} --bytes 60000")).unwrap();
    bench(Fault::None, &format!("request {SHORT} --bytes 0")).unwrap();
}

#[test]
fn a_wrong_answer_is_described() {
    let wrong = |fault| bench(fault, &format!("request {SHORT}")).unwrap_err().to_string();
    assert!(wrong(Fault::WrongByte).contains("differ from byte 20 on"));
    assert!(wrong(Fault::WrongSequence).contains("the one due was to request"));
    assert!(wrong(Fault::Failure).contains("104 OVERLOADED"));
    assert!(wrong(Fault::Hangup).contains("closed by the server"));
}

#[test]
fn pushes_are_checked_at_every_receiver() {
    bench(Fault::None, &format!("broadcast {SHORT} --in-flight 4 --json")).unwrap();
    let echoes = "--echo-rate 200 --echo-connections 2";
    bench(Fault::None, &format!("broadcast {SHORT} --rate 50 {echoes}")).unwrap();
    bench(Fault::None, &format!("broadcast {SHORT} --rate 0 {echoes}")).unwrap();
}

#[test]
fn a_push_that_is_lost_or_repeated_is_named() {
    let wrong =
        |fault| bench(fault, &format!("broadcast {SHORT} --in-flight 4")).unwrap_err().to_string();
    let lost = wrong(Fault::LostPush);
    assert!(lost.starts_with("1 delivery never came, 0 came again"), "{lost}");
    assert!(lost.contains("push 2 never came"), "{lost}");
    let repeated = wrong(Fault::RepeatedPush);
    assert!(repeated.starts_with("0 deliveries never came, 1 came again"), "{repeated}");
}

#[test]
fn connections_are_held_and_cycled() {
    bench(Fault::None, &format!("connect {SHORT} --large-answers 60000 --json")).unwrap();
    bench(Fault::None, &format!("connect {SHORT} --connect-rate 100")).unwrap();
    bench(Fault::None, &format!("connect {SHORT} --cycle")).unwrap();
    bench(Fault::None, &format!("connect {SHORT} --cycle --pipelined --reset")).unwrap();
}

#[test]
fn more_connections_than_the_workers_may_open_are_refused() {
    let refused = bench(Fault::None, "request --connections 400000000").unwrap_err().to_string();
    assert!(refused.contains("are too many for one process"), "{refused}");
}

#[test]
fn storms_and_shows_run_with_one_worker_and_with_several() {
    for workers in [1, 3] {
        bench(Fault::None, &format!("{STORM} --workers {workers} --json")).unwrap();
        bench(Fault::None, &format!("{STORM} --workers {workers} --reset")).unwrap();
        bench(Fault::None, &format!("{SHOW} --workers {workers} --json")).unwrap();
        bench(Fault::None, &format!("{SHOW} --workers {workers} --barrage 0")).unwrap();
    }
}

#[test]
fn options_that_would_measure_nothing_are_refused_before_the_run() {
    let refused = |arguments: &str| bench(Fault::None, arguments).unwrap_err().to_string();
    for scenario in ["request", "broadcast", "connect --cycle", "storm"] {
        let said = refused(&format!("{scenario} --connections 5 --duration 0"));
        assert!(said.contains("--duration 0 measures nothing"), "{scenario}: {said}");
    }
    let show = refused("show --connections 5 --arrive 50ms --barrage 0 --duration 2s");
    assert!(show.contains("from 1 s to 3 s") && show.contains("--question-every"), "{show}");
    let silent = refused(&format!("broadcast {SHORT} --rate 0"));
    assert!(silent.contains("--rate 0 without --echo-rate"), "{silent}");
    for negative in ["request --rate 0", "broadcast --rate=-1", "show --barrage NaN"] {
        let said = refused(&format!("{negative} --connections 5"));
        assert!(said.contains("is no rate"), "{negative}: {said}");
    }
}

#[test]
fn a_run_that_measured_nothing_is_an_error() {
    let rare = bench(Fault::None, &format!("request {SHORT} --rate 0.1")).unwrap_err().to_string();
    assert!(rare.contains("nothing was measured: no answer came"), "{rare}");
}

#[test]
fn an_error_in_a_show_is_named() {
    let wrong = |fault| bench(fault, &format!("{SHOW} --workers 3")).unwrap_err().to_string();
    let lost = wrong(Fault::LostPush);
    assert!(lost.contains("push 2 never came"), "{lost}");
    assert!(wrong(Fault::RepeatedPush).contains("push 2 came again"));
    assert!(wrong(Fault::WrongByte).contains("differ from byte 20 on"));
}

#[test]
fn a_silent_client_that_the_server_does_not_close_is_an_error() {
    let arguments = format!("{STORM} --slow-share 0.5 --slow-deadline 300ms");
    // This server closes no silent client.
    let error = bench(Fault::None, &arguments).unwrap_err().to_string();
    assert!(error.contains("did not close it with 109"), "{error}");
}

#[test]
fn several_workers_run_each_scenario() {
    let run = |arguments: &str| bench(Fault::None, &format!("{arguments} --workers 3")).unwrap();
    run(&format!("request {SHORT} --depth 3 --json"));
    run(&format!("request {SHORT} --rate 500"));
    run(&format!("request {SHORT} --in-flight 4"));
    run(&format!("broadcast {SHORT} --in-flight 4 --echo-rate 200 --echo-connections 4"));
    run(&format!("broadcast {SHORT} --rate 50"));
    run(&format!("connect {SHORT} --large-answers 60000"));
    run(&format!("connect {SHORT} --heartbeat-interval 20ms --ramp-rate 1000"));
    run(&format!("connect {SHORT} --heartbeat-sweep"));
    run(&format!("connect {SHORT} --cycle --pipelined"));
}

#[test]
fn an_error_in_one_worker_ends_all_with_that_error() {
    let wrong = |fault, arguments: &str| {
        bench(fault, &format!("{arguments} --workers 3")).unwrap_err().to_string()
    };
    let requests = "request --connections 5 --warmup 1s --duration 60s";
    assert!(wrong(Fault::WrongByte, requests).contains("differ from byte 20 on"));
    assert!(wrong(Fault::Hangup, requests).contains("closed by the server"));
    let lost = wrong(Fault::LostPush, &format!("broadcast {SHORT} --in-flight 4"));
    assert!(lost.starts_with("1 delivery never came, 0 came again"), "{lost}");
    let repeated = wrong(Fault::RepeatedPush, &format!("broadcast {SHORT} --in-flight 4"));
    assert!(repeated.starts_with("0 deliveries never came, 1 came again"), "{repeated}");
}

#[test]
fn one_worker_uses_all_connections_in_rotation_and_sweeps_them() {
    bench(Fault::None, &format!("request {SHORT} --in-flight 2 --json")).unwrap();
    bench(Fault::None, &format!("connect {SHORT} --heartbeat-sweep --json")).unwrap();
}

#[test]
fn options_that_do_not_fit_the_number_of_workers_are_refused() {
    let refused = |arguments: &str| bench(Fault::None, arguments).unwrap_err().to_string();
    let spin = refused(&format!("request {SHORT} --workers 2 --spin"));
    assert!(spin.contains("--spin works with one worker only"), "{spin}");
    let many = refused(&format!("request {SHORT} --workers 6"));
    assert!(many.contains("at most the number of connections, 5"), "{many}");
    let idle = refused(&format!("request {SHORT} --workers 3 --in-flight 2"));
    assert!(idle.contains("less than one for each of 3 workers"), "{idle}");
    let deep = refused(&format!("request {SHORT} --in-flight 6"));
    assert!(deep.contains("use --depth to have several on each"), "{deep}");
}
