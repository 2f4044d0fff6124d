//! `pleach agent`: the node in the foreground, its signals, and what systemd is told.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::Agent;
use crate::cli;
use crate::control::Server;
use crate::failure::Failure;

/// Runs the node that a config describes, until SIGTERM or SIGINT.
///
/// # Errors
/// Errors in the config, or why it cannot start.
pub fn run(file: Option<&Path>) -> Result<(), Failure> {
    let config = cli::load(file)?;
    crate::machine::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::done("agent", format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let failed = |error: std::io::Error| Failure::done("agent", format!("cannot catch signals: {error}"));
        let mut term = signal(SignalKind::terminate()).map_err(failed)?;
        let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut hup = signal(SignalKind::hangup()).map_err(failed)?;
        let state = config.state.clone();
        let agent = Agent::start(config).await?;
        let server =
            Server::bind(&state).map_err(|error| Failure::done("agent: the control socket", error.to_string()))?;
        let serving = tokio::spawn(server.serve(Arc::clone(&agent) as Arc<dyn crate::control::Handler>));
        notify("READY=1");
        let mut ticks = interval(watchdog().unwrap_or(Duration::from_secs(3_600)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = term.recv() => break,
                _ = int.recv() => break,
                _ = hup.recv() => {
                    notify("RELOADING=1");
                    agent.reload(cli::load(file));
                    notify("READY=1");
                }
                _ = ticks.tick() => notify("WATCHDOG=1"),
            }
        }
        notify("STOPPING=1");
        tracing::info!("stopping");
        serving.abort();
        agent.stop().await;
        Ok(())
    })
}

/// Tells systemd, where it listens. Source: sd_notify(3).
fn notify(text: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = || -> std::io::Result<()> {
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
        Ok(())
    };
    if let Err(error) = sent() {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// How often systemd wants to hear of us: half of what it gives.
fn watchdog() -> Option<Duration> {
    let micros: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(micros / 2)).filter(|half| !half.is_zero())
}
