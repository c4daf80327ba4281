//! Signals: which ones drain, and that no other one ends a gateway.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::Command;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tidegate_tests::holder::{drain, hold, keep_silent};
use tidegate_tests::phone::quiz;
use tidegate_tests::process::Process;
use tidegate_tests::{Code, Phone, Setup, until};

#[test]
fn signals_without_a_meaning_are_logged_and_ignored() {
    let mut gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    for (signal, text) in [
        (Signal::USR1, "SIGUSR1 has no meaning here"),
        (Signal::USR2, "SIGUSR2 has no meaning here"),
        (Signal::HUP, "SIGHUP: nothing has changed"),
    ] {
        gateway.process.signal(signal);
        gateway.process.stderr.wait_for(text);
        phone.assert_is_served();
    }
    gateway.terminate();
    phone.goodbye(Code::Draining);
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn signals_that_do_not_end_a_gateway_do_not_shorten_a_drain() {
    let mut gateway = Setup::demo().start();
    // This client neither reads its goodbye nor closes, so the gateway lingers.
    let mut phone = gateway.login(7);
    gateway.terminate();
    gateway.process.stdout.wait_for("the next signal hurries");
    phone.wait_for_goodbye();
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2] {
        gateway.process.signal(signal);
    }
    gateway.process.stderr.wait_for("SIGUSR2 has no meaning here");
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
}

/// A gateway in a terminal.
struct InTerminal {
    /// script(1), which provides the terminal.
    terminal: Process,
    gateway: Pid,
    _setup: Setup,
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        // The gateway is a child of script(1), so nothing else ends it when a test fails.
        let _ = kill_process(self.gateway, Signal::KILL);
    }
}

/// How the gateway is started in its terminal.
#[derive(Clone, Copy, Debug)]
enum Shell {
    /// The shell runs this and then becomes the gateway.
    Replaced(&'static str),
    /// An interactive bash that runs the gateway as its foreground job. When the terminal closes, bash and the kernel
    /// each send SIGHUP to the job.
    Interactive,
}

/// Starts a gateway in a terminal, and connects a client.
fn in_a_terminal(shell: Shell) -> (InTerminal, Phone) {
    let run = start_in_a_terminal(Setup::quiz(), shell);
    let clients = announced(&run.terminal, "listening for clients on ");
    let mut phone = Phone::connect(clients.parse().unwrap());
    phone.login(7);
    (run, phone)
}

/// The rest of the line that follows `before` in the output of a process.
fn announced(process: &Process, before: &str) -> String {
    process.stdout.find(before, |said| {
        let line = said.lines().find_map(|line| line.trim_end().strip_prefix(before))?;
        Some(line.to_owned())
    })
}

/// Starts a gateway in a terminal without waiting.
fn start_in_a_terminal(setup: Setup, shell: Shell) -> InTerminal {
    let inner = setup.command();
    let words = std::iter::once(inner.get_program()).chain(inner.get_args());
    let line: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    // script(1) provides a terminal, which closes when script is killed.
    let line = match shell {
        Shell::Replaced(before) => format!("{before} echo pid=$$; exec {}", line.join(" ")),
        Shell::Interactive => {
            let job = setup.folder().join("job");
            std::fs::write(&job, format!("echo pid=$$\nexec {}\n", line.join(" "))).unwrap();
            // Bash runs its startup file as if it were typed, and stays interactive.
            std::fs::write(setup.folder().join("bashrc"), "sh ./job\n").unwrap();
            "exec bash --rcfile ./bashrc -i".to_owned()
        }
    };
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    script.current_dir(setup.folder()).env("SHELL", "/bin/sh");
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    let process = Process::start(&mut script, "");
    let pid = Pid::from_raw(announced(&process, "pid=").parse().unwrap()).unwrap();
    InTerminal { terminal: process, gateway: pid, _setup: setup }
}

fn wait_for_end(gateway: Pid) {
    until("the gateway is gone", || test_kill_process(gateway).is_err().then_some(()));
}

#[test]
fn a_closed_terminal_drains_the_gateway() {
    let (mut run, mut phone) = in_a_terminal(Shell::Replaced(""));
    // While the terminal is open, SIGHUP is a request to reload.
    kill_process(run.gateway, Signal::HUP).unwrap();
    run.terminal.stdout.wait_for("SIGHUP: nothing has changed");
    phone.assert_is_served();
    run.terminal.kill();
    phone.goodbye(Code::Draining);
    drop(phone);
    wait_for_end(run.gateway);
}

#[test]
fn a_closed_terminal_ends_a_start_that_waits() {
    let setup = Setup::demo().set("listen", hold(keep_silent)).set("admin.listen", hold(drain));
    let mut run = start_in_a_terminal(setup, Shell::Replaced(""));
    run.terminal.stdout.wait_for("a gateway that drains holds this address");
    run.terminal.kill();
    wait_for_end(run.gateway);
}

#[test]
fn two_hangup_signals_of_a_closed_terminal_cause_one_drain() {
    for ctrl_c in [false, true] {
        for _ in 0..3 {
            let (mut run, mut phone) = in_a_terminal(Shell::Interactive);
            let thinking = phone.send(quiz::THINK, b"1500");
            phone.assert_is_served();
            if ctrl_c {
                kill_process(run.gateway, Signal::INT).unwrap();
                run.terminal.stdout.wait_for("the next signal hurries");
            }
            run.terminal.kill();
            // A second signal would hurry the drain, and a third one end it: this call would get no answer.
            assert_eq!(phone.outcome(thinking).unwrap(), "thought about it");
            phone.goodbye(Code::Draining);
            drop(phone);
            wait_for_end(run.gateway);
        }
    }
}

#[test]
fn a_gateway_that_ignores_hangups_survives_its_terminal() {
    // As nohup(1) does it.
    let (mut run, mut phone) = in_a_terminal(Shell::Replaced("trap '' HUP;"));
    run.terminal.stdout.wait_for("SIGHUP was ignored at the start");
    // An operator's SIGHUP still has it reload.
    kill_process(run.gateway, Signal::HUP).unwrap();
    run.terminal.stdout.wait_for("SIGHUP: nothing has changed");
    run.terminal.kill();
    phone.assert_is_served();
    kill_process(run.gateway, Signal::HUP).unwrap();
    phone.assert_is_served();
    kill_process(run.gateway, Signal::TERM).unwrap();
    phone.goodbye(Code::Draining);
    drop(phone);
    wait_for_end(run.gateway);
}
