//! The floor of an echo: edge-triggered epoll, one receive, one send, and nothing else.

use tidegate_benches::{BUFFER_BYTES, Connections, Floor};

fn main() -> anyhow::Result<()> {
    let mut floor = Floor::listen()?;
    let mut connections = Connections::new(&floor)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        floor.wait(None)?;
        for ready in floor.ready() {
            match ready {
                Some(ready) => connections.with(ready.fd, |it| it.echo(ready, &mut buffer)),
                None => floor.accept(|fd, socket| connections.insert(fd, socket))?,
            }
        }
    }
}
