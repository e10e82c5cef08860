//! The loop that delivers what is due.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_registry::notice::{DeliveryClaim, DeliveryEnd, Subscription};
use tidegate_registry::store::{Result, Store, StoreError};
use tidegate_registry::time::Clock;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::client::{Client, EXCHANGE_MAX, Webhook};

/// How long a claim lasts: longer than an exchange ever takes, and the answer to the registry.
const LEASE: Duration = Duration::from_secs(EXCHANGE_MAX.as_secs() * 4);

/// Deliveries at once.
const AT_ONCE: u32 = 8;

/// How often, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two looks, when nobody wakes the sender.
    pub look: Duration,
    /// Before the second attempt; every further pause is twice as long.
    pub pause: Duration,
    /// No pause is longer.
    pub pause_max: Duration,
    /// A notice that is older is given up.
    pub give_up_after: Duration,
}

impl Pace {
    /// Attempts after 10 s, 20 s, 40 s, …, then every hour, until `give_up_after`.
    pub fn patient(give_up_after: Duration) -> Self {
        Self {
            look: Duration::from_secs(5),
            pause: Duration::from_secs(10),
            pause_max: Duration::from_secs(3_600),
            give_up_after,
        }
    }

    /// After the attempt of that number (from 1) failed, of a notice of that age; `None` to give up.
    fn retry_in(&self, attempt: u32, age: Duration) -> Option<Duration> {
        if age >= self.give_up_after {
            return None;
        }
        let doubled = self.pause.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        Some(doubled.min(self.pause_max))
    }
}

/// Delivers notices.
#[derive(Debug)]
pub struct Sender {
    store: Arc<dyn Store>,
    /// Project time, for the audit trail.
    clock: Arc<dyn Clock>,
    /// Real time, which signatures carry.
    real: Arc<dyn Clock>,
    client: Client,
    webhooks: HashMap<String, Arc<Webhook>>,
    subscriptions: Vec<Subscription>,
    pace: Pace,
    bell: Arc<Notify>,
}

impl Sender {
    /// A sender that has not looked yet. `webhooks` are what is delivered to, each with the events that it wants.
    pub fn new(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        real: Arc<dyn Clock>,
        client: Client,
        webhooks: Vec<(Webhook, Vec<String>)>,
        pace: Pace,
    ) -> Self {
        let subscriptions = webhooks
            .iter()
            .map(|(webhook, events)| Subscription { webhook: webhook.name.clone(), events: events.clone() })
            .collect();
        let webhooks = webhooks.into_iter().map(|(webhook, _)| (webhook.name.clone(), Arc::new(webhook))).collect();
        Self { store, clock, real, client, webhooks, subscriptions, pace, bell: Arc::default() }
    }

    /// Wakes the sender: there may be something to send.
    pub fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.bell)
    }

    /// Delivers what is due until `cancel`, finishing what is under way. An outage of the registry is waited out.
    pub async fn run(&self, cancel: CancellationToken) {
        while !cancel.is_cancelled() {
            let woken = self.bell.notified();
            if let Err(error) = self.step(&cancel).await {
                warn!("Notices wait, since the registry does not answer: {error}");
            }
            tokio::select! {
                () = cancel.cancelled() => {}
                () = woken => {}
                () = tokio::time::sleep(self.pace.look) => {}
            }
        }
    }

    /// Delivers what is due now. Returns how many attempts were made.
    ///
    /// # Errors
    /// When the registry cannot be read or written; what was claimed is then claimed again once its lease has run out.
    pub async fn step(&self, cancel: &CancellationToken) -> Result<u64> {
        self.store.notices_route(&self.subscriptions, self.pace.give_up_after, self.clock.now()).await?;
        let names: Vec<String> = self.webhooks.keys().cloned().collect();
        let mut attempts = 0;
        while !names.is_empty() && !cancel.is_cancelled() {
            let claims = self.store.delivery_claim(&names, LEASE, AT_ONCE).await?;
            if claims.is_empty() {
                break;
            }
            attempts += claims.len() as u64;
            let mut sending = JoinSet::new();
            for claim in claims {
                if let Some(webhook) = self.webhooks.get(&claim.webhook) {
                    let (client, webhook, now) = (self.client.clone(), Arc::clone(webhook), self.real.now());
                    let pace = self.pace;
                    sending.spawn(async move {
                        let end = deliver(&client, &webhook, &claim, now, pace).await;
                        (claim, end)
                    });
                }
            }
            while let Some(sent) = sending.join_next().await {
                // One that panicked is claimed again once its lease has run out.
                let Ok((claim, end)) = sent else { continue };
                match self.store.delivery_end(claim.token, end, self.clock.now()).await {
                    Ok(()) => {}
                    Err(StoreError::LostLease) => {
                        debug!(notice.id = %claim.notice.id, "another sender went on with it");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(attempts)
    }
}

async fn deliver(
    client: &Client,
    webhook: &Webhook,
    claim: &DeliveryClaim,
    now: tidegate_registry::time::Instant,
    pace: Pace,
) -> DeliveryEnd {
    let (id, event, name) = (claim.notice.id, claim.notice.what.event, &webhook.name);
    match client.send(webhook, &claim.notice, claim.attempt, now).await {
        Ok(()) => {
            info!(notice.id = %id, event = %event, webhook = %name, "delivered a notice");
            DeliveryEnd::Sent
        }
        Err(error) => {
            let retry_in = pace.retry_in(claim.attempt, claim.age);
            let next = if retry_in.is_some() { "it is tried again" } else { "it is given up" };
            warn!(notice.id = %id, event = %event, webhook = %name, "A notice was not delivered, {next}: {error}");
            DeliveryEnd::Failed { error: error.to_string(), retry_in }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_an_hour_until_it_is_given_up() {
        let day = Duration::from_secs(86_400);
        let pace = Pace::patient(3 * day);
        let seconds = |attempt| pace.retry_in(attempt, Duration::ZERO).map(|pause| pause.as_secs());
        assert_eq!([1, 2, 3, 9, 10, 1_000].map(seconds), [10, 20, 40, 2_560, 3_600, 3_600].map(Some));
        assert_eq!(pace.retry_in(1, 3 * day), None);
    }
}
