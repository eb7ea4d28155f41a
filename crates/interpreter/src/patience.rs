//! Time limits that count how long this server has run, and not how long it was frozen: a sandbox can be
//! paused at any moment, and then all clocks have gone on when it is resumed.

use std::{pin::pin, time::Duration};

use tokio::time::timeout;

/// What a limit is counted in. A pause costs one at most.
const PART: Duration = Duration::from_secs(1);

/// Waits for something for as long as a limit says, in whole seconds of running time: after a pause of
/// any length it has all that was left, but for a second. `None` when it did not come in time. Can be
/// dropped.
pub(crate) async fn running_timeout<T>(
    limit: Duration,
    awaited: impl Future<Output = T>,
) -> Option<T> {
    let mut awaited = pin!(awaited);
    // One more, for the one that a pause may cost: what waits just before its limit gets a chance, too.
    for _ in 0..=limit.as_secs() {
        if let Ok(outcome) = timeout(PART, awaited.as_mut()).await {
            return Some(outcome);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::{
        sync::oneshot,
        time::{Instant, advance, sleep},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_is_given_up() {
        let before = Instant::now();
        let never = std::future::pending::<()>();
        assert_eq!(running_timeout(Duration::from_secs(3), never).await, None);
        assert_eq!(before.elapsed().as_secs(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_after_a_pause_is_taken_however_long_that_was() {
        for paused_at in [0, 1500, 2999] {
            let (answer, answered) = oneshot::channel();
            let waits = tokio::spawn(running_timeout(Duration::from_secs(3), answered));
            sleep(Duration::from_millis(paused_at)).await;
            advance(Duration::from_secs(3600)).await;
            // It has seen what time it is.
            tokio::task::yield_now().await;
            answer.send(7).unwrap();
            assert_eq!(waits.await.unwrap(), Some(Ok(7)), "{paused_at}");
        }
    }
}
