//! Signals: which ones drain, and that no other ends a gateway.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::Command;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tidegate_tests::holder::{drain, hold, keep_silent};
use tidegate_tests::phone::quiz;
use tidegate_tests::process::Process;
use tidegate_tests::{Code, Phone, Setup, until};

#[test]
fn signals_without_a_meaning_change_nothing_and_say_so() {
    let mut gateway = Setup::demo().start();
    let mut phone = gateway.login(7);
    for (signal, text) in [
        (Signal::USR1, "SIGUSR1 has no meaning here"),
        (Signal::USR2, "SIGUSR2 has no meaning here"),
        (Signal::HUP, "SIGHUP: this version reads its configuration only when it starts"),
    ] {
        gateway.process.signal(signal);
        gateway.process.stderr.wait_for(text);
        phone.is_served();
    }
    gateway.terminate();
    phone.goodbye(Code::Draining);
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
}

#[test]
fn signals_that_ask_to_reload_or_mean_nothing_do_not_cut_a_drain() {
    let mut gateway = Setup::demo().start();
    // This one neither reads its goodbye nor closes: the gateway lingers for it.
    let mut phone = gateway.login(7);
    gateway.terminate();
    gateway.process.stdout.wait_for("once more to end at once");
    phone.is_told_to_go();
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2] {
        gateway.process.signal(signal);
    }
    gateway.process.stderr.wait_for("SIGUSR2 has no meaning here");
    drop(phone);
    assert_eq!(gateway.process.wait().code(), Some(0));
}

/// A gateway within a terminal.
struct InTerminal {
    /// script(1), which is the terminal.
    terminal: Process,
    gateway: Pid,
    _setup: Setup,
}

impl Drop for InTerminal {
    fn drop(&mut self) {
        // It is a child of the terminal's: nobody else ends it where a test fails.
        let _ = kill_process(self.gateway, Signal::KILL);
    }
}

/// How the gateway is started in its terminal.
#[derive(Clone, Copy, Debug)]
enum Shell {
    /// The gateway takes the shell's place, after this.
    Replaced(&'static str),
    /// An interactive bash, which stays and runs it as its foreground job, as a person does. When the terminal
    /// closes, bash sends SIGHUP to the job, and so does the kernel.
    Interactive,
}

/// Starts one, and a client of it.
fn in_a_terminal(shell: Shell) -> (InTerminal, Phone) {
    let run = start_in_a_terminal(Setup::quiz(), shell);
    let clients = announced(&run.terminal, "listening for clients on ");
    let mut phone = Phone::connect(clients.parse().unwrap());
    phone.login(7);
    (run, phone)
}

/// What a process says after these words.
fn announced(process: &Process, before: &str) -> String {
    process.stdout.find(before, |said| {
        let line = said.lines().find_map(|line| line.trim_end().strip_prefix(before))?;
        Some(line.to_owned())
    })
}

/// Starts one, and waits for nothing.
fn start_in_a_terminal(setup: Setup, shell: Shell) -> InTerminal {
    let inner = setup.command();
    let words = std::iter::once(inner.get_program()).chain(inner.get_args());
    let line: Vec<_> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    // script(1) gives it a terminal of its own, which closes when script is killed.
    let line = match shell {
        Shell::Replaced(before) => format!("{before} echo pid=$$; exec {}", line.join(" ")),
        Shell::Interactive => {
            let job = setup.folder().join("job");
            std::fs::write(&job, format!("echo pid=$$\nexec {}\n", line.join(" "))).unwrap();
            // What it reads first it takes for typed: it goes on to be interactive.
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
fn a_terminal_that_closes_drains() {
    let (mut run, mut phone) = in_a_terminal(Shell::Replaced(""));
    // While the terminal is there, SIGHUP is a wish to reload.
    kill_process(run.gateway, Signal::HUP).unwrap();
    run.terminal.stdout.wait_for("nothing has changed");
    phone.is_served();
    run.terminal.kill();
    phone.goodbye(Code::Draining);
    drop(phone);
    wait_for_end(run.gateway);
}

#[test]
fn a_terminal_that_closes_ends_a_start_that_waits() {
    let setup = Setup::demo().set("listen", hold(keep_silent)).set("admin.listen", hold(drain));
    let mut run = start_in_a_terminal(setup, Shell::Replaced(""));
    run.terminal.stdout.wait_for("a gateway that drains holds this address");
    run.terminal.kill();
    wait_for_end(run.gateway);
}

#[test]
fn a_terminal_that_closes_is_told_twice_and_drains_once() {
    for ctrl_c in [false, true] {
        for _ in 0..3 {
            let (mut run, mut phone) = in_a_terminal(Shell::Interactive);
            let thinking = phone.send(quiz::THINK, b"500");
            phone.is_served();
            if ctrl_c {
                kill_process(run.gateway, Signal::INT).unwrap();
                run.terminal.stdout.wait_for("once more to end at once");
            }
            run.terminal.kill();
            // A second request would end the process at once, and this would never be answered.
            assert_eq!(phone.outcome(thinking).unwrap(), "thought about it");
            phone.goodbye(Code::Draining);
            drop(phone);
            wait_for_end(run.gateway);
        }
    }
}

#[test]
fn a_terminal_that_closes_is_nothing_to_a_gateway_that_was_told_so() {
    // As nohup(1) does.
    let (mut run, mut phone) = in_a_terminal(Shell::Replaced("trap '' HUP;"));
    run.terminal.kill();
    phone.is_served();
    kill_process(run.gateway, Signal::TERM).unwrap();
    phone.goodbye(Code::Draining);
    drop(phone);
    wait_for_end(run.gateway);
}
