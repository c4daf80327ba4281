//! The drain of a gateway that is part of another program.

use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use tidegate::Server;
use tidegate::config::{AuthMode, Config};
use tidegate_backend::demo::Demo;
use tidegate_backend::{Call, Gateway, Handler, Placement};

/// Long enough on a machine that has much else to do.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn an_operators_drain_ends_the_wait_of_its_program_and_frees_the_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::embedded_default();
    config.shards = 2;
    config.auth.mode = AuthMode::Demo;
    config.listen = Some("127.0.0.1:0".parse().unwrap());
    config.admin.listen = "127.0.0.1:0".parse().unwrap();
    config.admin.token_file = folder.path().join("token");
    config.rooms.ticket_key_file = folder.path().join("ticket");
    config.rooms.offset_file = None;
    let server = Server::builder(config).handler("demo", Demo::default()).start().unwrap();
    let (clients, operators) = (server.client_address(), server.admin_address());
    let mut client = TcpStream::connect(clients).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    assert!(server.drain_began().try_recv().is_err());
    // The program keeps it longer than the server.
    let control = server.control();
    control.drain();
    control.drain();
    server.drain_began().recv_timeout(LONG).unwrap();
    let mut goodbye = Vec::new();
    client.read_to_end(&mut goodbye).unwrap();
    assert!(!goodbye.is_empty());
    drop(client);
    server.wait().unwrap();
    TcpListener::bind(clients).unwrap();
    TcpListener::bind(operators).unwrap();
    drop(control);
}

/// A handler on workers whose end is seen at the other end of its channel.
struct Watched {
    _kept: Sender<()>,
}

impl Handler for Watched {
    fn handle(&self, call: Call, _gateway: &Gateway) {
        call.answer("");
    }

    fn placement(&self) -> Placement {
        Placement::Worker
    }
}

#[test]
fn the_handler_and_its_workers_end_with_the_server_also_where_a_listener_has_http() {
    let folder = tempfile::tempdir().unwrap();
    let toml = "listen = '127.0.0.1:0'\nshards = 2\n[auth]\nmode = 'demo'\n[admin]\nlisten = '127.0.0.1:0'\n\
                [listeners.web]\nlisten = '127.0.0.1:0'\nwire = 'http'\n\
                [[http_routes]]\npath = '/ask'\nmethod = 'POST'\ntype = 1\n";
    let mut config = Config::from_toml(toml).unwrap();
    config.admin.token_file = folder.path().join("token");
    config.rooms.ticket_key_file = folder.path().join("ticket");
    config.rooms.offset_file = None;
    let (kept, end) = mpsc::channel();
    let server = Server::builder(config).handler("demo", Watched { _kept: kept }).start().unwrap();
    // The program keeps these longer than the server.
    let (control, gateway) = (server.control(), server.gateway().clone());
    assert_eq!(end.try_recv(), Err(mpsc::TryRecvError::Empty));
    server.shutdown();
    server.wait().unwrap();
    assert_eq!(end.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected));
    drop((control, gateway));
}
