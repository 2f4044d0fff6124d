//! When a peer is served by its fallback: not before its agent was away for long enough, and never beside it.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard, watch};
use tokio::time::{sleep, sleep_until};

/// How long an rsync under way may take to its end when the agent is back; then it is ended.
const FINISH_MAX: Duration = Duration::from_secs(5);
/// How long the daemon may take to see that.
pub(super) const GONE_MAX: Duration = Duration::from_millis(500);

/// Stands between a peer's sessions and its fallback.
#[derive(Debug)]
pub struct Gate {
    /// Since when the agent is away; none while it is there, or is not to be had on purpose.
    away: watch::Sender<Option<Instant>>,
    /// Held while an rsync runs.
    running: Mutex<()>,
}

/// Two setups are the same only with the same gate.
impl PartialEq for Gate {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Gate {}

impl Default for Gate {
    fn default() -> Self {
        Self { away: watch::channel(None).0, running: Mutex::new(()) }
    }
}

impl Gate {
    /// The agent cannot be reached.
    pub fn note_away(&self) {
        self.away.send_if_modified(|away| {
            let news = away.is_none();
            away.get_or_insert_with(Instant::now);
            news
        });
    }

    /// The agent is there, or somebody wants neither it nor its fallback.
    pub fn shut(&self) {
        self.away.send_if_modified(|away| away.take().is_some());
    }

    /// The agent is back: returns when no rsync writes there any more.
    pub async fn close(&self) {
        self.shut();
        drop(self.running.lock().await);
    }

    /// Whether the peer is served.
    #[must_use]
    pub fn is_open(&self, after: Duration) -> bool {
        self.away.borrow().is_some_and(|since| since.elapsed() >= after)
    }

    /// Returns when the agent was away for so long.
    pub(super) async fn opened(&self, after: Duration) {
        let mut away = self.away.subscribe();
        loop {
            let since = *away.borrow_and_update();
            let due = async {
                match since {
                    Some(since) => sleep_until((since + after).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                // Never closed: this holds the other end.
                _ = away.changed() => {}
                () = due => return,
            }
        }
    }

    /// Returns when the agent is back.
    async fn shut_again(&self) {
        // Never closed: this holds the other end.
        self.away.subscribe().wait_for(Option::is_none).await.ok();
    }

    /// Returns when the agent is back and the run under way has ended.
    pub(super) async fn closed(&self) {
        self.shut_again().await;
        drop(self.running.lock().await);
    }

    /// Lets one rsync run, alone; none where the agent is there.
    pub(super) async fn enter(&self) -> Option<MutexGuard<'_, ()>> {
        let running = self.running.lock().await;
        self.away.borrow().is_some().then_some(running)
    }

    /// Returns when the agent is back and has waited long enough.
    pub(super) async fn overdue(&self) {
        self.shut_again().await;
        sleep(FINISH_MAX).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn nothing_runs_beside_the_agent() {
        let gate = Arc::new(Gate::default());
        assert!(gate.enter().await.is_none());
        gate.note_away();
        assert!(!gate.is_open(Duration::from_secs(60)));
        gate.opened(Duration::ZERO).await;
        let running = gate.enter().await.unwrap();
        let closing = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.close().await }
        });
        // The only other task: it goes as far as it can.
        tokio::task::yield_now().await;
        assert!(!gate.is_open(Duration::ZERO) && !closing.is_finished(), "an rsync runs");
        drop(running);
        closing.await.unwrap();
        assert!(gate.enter().await.is_none());
    }
}
