//! The server's process, and its deaths.

use std::{env, io, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::sleep,
};

use crate::{args::Args, injector::Injector, progress::Progress};

/// How often it is looked whether it is time to kill the server.
const GLANCE: Duration = Duration::from_millis(5);

/// The server: this program once more. It is killed when this is dropped, and ends when this program does.
#[derive(Debug)]
pub(crate) struct Server(Child);

impl Server {
    /// Starts a server on the files of this folder, and returns where it listens.
    pub(crate) async fn start(folder: &Path) -> io::Result<(Self, SocketAddr)> {
        let mut server = Command::new(env::current_exe()?)
            .args(env::args_os().skip(1))
            .arg("--serve")
            .arg(folder)
            // It is never written to: it ends with this program.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut said = String::new();
        if let Some(output) = server.stdout.as_mut() {
            BufReader::new(output).read_line(&mut said).await?;
        }
        let address = said.trim().parse();
        let address = address.map_err(|_| io::Error::other("the server did not start"))?;
        Ok((Self(server), address))
    }

    /// Kills it: on Unix with SIGKILL, of which it learns nothing. Whatever it was doing is over.
    pub(crate) async fn kill(mut self) -> io::Result<()> {
        self.0.kill().await
    }
}

/// Kills the server in the midst of the payments, as often as the arguments say, and starts it again each time.
pub(crate) async fn now_and_then(
    mut server: Server,
    folder: &Path,
    injector: &Injector,
    args: &Args,
    progress: &Progress,
) -> io::Result<Server> {
    let kills = args.kills();
    for kill in 1..=kills {
        // After a third and two thirds of the payments, if it is two.
        let due = (args.payments * kill / (kills + 1)).max(1);
        while injector.payments() < due {
            sleep(GLANCE).await;
        }
        injector.seen().server_is_gone();
        server.kill().await?;
        progress.say("the server is killed");
        sleep(args.outage()).await;
        let address;
        (server, address) = Server::start(folder).await?;
        injector.seen().server_is_back(address);
        progress.say("the server is back");
    }
    Ok(server)
}
