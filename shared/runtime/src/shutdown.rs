//! How a process ends: a signal stops intake, what is at hand is finished within a budget, a second signal ends at once.
//! A role that ends by itself takes the process with it, non-zero, so that whoever supervises it starts it again.

use anyhow::Error;
use std::fs::File;
use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// From the first signal to the end, at most. Kubernetes kills after 60 s (`deploy/`).
pub const DRAIN_BUDGET: Duration = Duration::from_secs(25);

/// Cancels the returned token at the first SIGTERM or SIGINT; the second one ends the process at once. SIGHUP, by which
/// supervisors ask for the configuration to be read again, changes nothing and says so; only a process started at a
/// terminal is stopped by it, as by SIGTERM, because there it says that the terminal has gone. Must be called inside a
/// tokio runtime.
/// # Errors
/// When the system does not let us listen to signals.
pub fn stop_on_signals() -> io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let terminal = Terminal::of_this_process();
    let gone = CancellationToken::new();
    let gone_too = gone.clone();
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            if terminal.is_there() {
                terminal.gone();
                gone_too.cancel();
                return;
            }
            tracing::warn!(
                signal = "SIGHUP",
                "SIGHUP: the configuration is not read again, that is still to come; restart to apply a change"
            );
        }
    });
    let token = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            name = next_signal(&mut terminate, &mut interrupt) => name,
            () = gone.cancelled() => "SIGHUP",
        };
        tracing::info!(signal = name, "{name}: stopping; what is at hand is finished first");
        token.cancel();
        let name = next_signal(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "{name} again: ending at once");
        // 128 + SIGTERM or SIGINT, as a shell would report it.
        std::process::exit(if name == "SIGTERM" { 143 } else { 130 });
    });
    Ok(stop)
}

async fn next_signal(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Which of the standard streams were a terminal at the start: one that has gone is none any more.
struct Terminal {
    input: bool,
    output: bool,
    errors: bool,
}

impl Terminal {
    fn of_this_process() -> Self {
        Self {
            input: io::stdin().is_terminal(),
            output: io::stdout().is_terminal(),
            errors: io::stderr().is_terminal(),
        }
    }

    /// Whether there is one to lose. A process may speak to a file and still belong to one.
    fn is_there(&self) -> bool {
        self.input || self.errors
    }

    /// What would have gone to the terminal goes nowhere from now on: a line that cannot be written ends the process in the
    /// middle of its drain.
    fn gone(&self) {
        let Ok(nowhere) = File::options().write(true).open("/dev/null") else { return };
        if self.output {
            // Failing leaves it as it was: there is nobody to be told.
            let _ = rustix::stdio::dup2_stdout(&nowhere);
        }
        if self.errors {
            let _ = rustix::stdio::dup2_stderr(&nowhere);
        }
    }
}

/// The roles of a process.
#[derive(Debug)]
pub struct Roles {
    running: JoinSet<(&'static str, Result<(), Error>)>,
    stop: CancellationToken,
    drain: Duration,
}

/// How the roles ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Asked to, and within the budget.
    Clean,
    /// A role failed or ended by itself, or the budget ran out.
    Failed,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Clean => ExitCode::SUCCESS,
            Ended::Failed => ExitCode::FAILURE,
        }
    }
}

impl Roles {
    /// No roles yet. `stop` is the token they all watch; `drain` is how long they may take after it.
    pub fn new(stop: CancellationToken, drain: Duration) -> Self {
        Self { running: JoinSet::new(), stop, drain }
    }

    /// The token every role watches.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a role. It should return `Ok` soon after the token is cancelled, and not before.
    pub fn spawn<E: Into<Error>>(
        &mut self,
        name: &'static str,
        role: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.running.spawn(async move { (name, role.await.map_err(Into::into)) });
    }

    /// Waits until the token is cancelled or a role ends by itself, then for the others to finish.
    pub async fn until_stopped(mut self) -> Ended {
        let mut ended = Ended::Clean;
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            Some(role) = self.running.join_next() => {
                match role {
                    Ok((name, Ok(()))) => tracing::error!(role = name, "{name} ended by itself; stopping the process"),
                    Ok((name, Err(error))) => tracing::error!(role = name, error = format!("{error:#}"), "{name} failed; stopping the process"),
                    Err(error) => tracing::error!(%error, "A role panicked; stopping the process"),
                }
                ended = Ended::Failed;
                self.stop.cancel();
            }
        }
        let begun = Instant::now();
        let finished = tokio::time::timeout(self.drain, async {
            while let Some(role) = self.running.join_next().await {
                match role {
                    Ok((_, Ok(()))) => {}
                    Ok((name, Err(error))) => {
                        tracing::error!(role = name, error = format!("{error:#}"), "{name} failed while stopping");
                        ended = Ended::Failed;
                    }
                    Err(error) => {
                        tracing::error!(%error, "A role panicked while stopping");
                        ended = Ended::Failed;
                    }
                }
            }
        });
        if finished.await.is_err() {
            tracing::error!(
                left = self.running.len(),
                "The budget of {} ms for stopping ran out; what is left is cut",
                self.drain.as_millis()
            );
            self.running.shutdown().await;
            return Ended::Failed;
        }
        tracing::info!(took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), "Stopped");
        ended
    }
}
