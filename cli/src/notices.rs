//! What sends notices, as the settings say: webhooks with their secrets, and what may be spoken to.

use std::sync::Arc;

use anyhow::Context as _;
use tidegate_notify::{Client, Pace, Sender, Webhook};
use tidegate_registry::definitions::settings::WebhookSettings;
use tidegate_registry::definitions::{LoadOptions, Settings};
use tidegate_registry::time::SystemClock;

use crate::context::Registry;
use crate::error::UserError;

/// What posts notices.
///
/// # Errors
/// When the system's certificates cannot be read.
pub fn client(settings: &Settings) -> anyhow::Result<Client> {
    Client::new(settings.project.as_str(), settings.notify.allowed.clone()).context("preparing to send notices")
}

/// A webhook with its secret.
///
/// # Errors
/// When the environment does not hold the secret.
pub fn webhook(webhook: &WebhookSettings) -> anyhow::Result<Webhook> {
    let secret = (LoadOptions::from_process().env)(&webhook.secret_env).filter(|secret| !secret.is_empty());
    let Some(secret) = secret else {
        return Err(UserError::new(format!(
            "the environment variable `{}`, whose secret signs what is sent to the webhook `{}`, is not set",
            webhook.secret_env, webhook.name
        ))
        .hint("set it to the secret that the receiver knows, or take the webhook out of `notify:` in tidegate.yaml")
        .into());
    };
    let url = webhook.url.expose().parse().with_context(|| format!("reading the URL of `{}`", webhook.name))?;
    Ok(Webhook { name: webhook.name.clone(), url, secret: secret.into_bytes() })
}

/// What delivers all notices. Without webhooks it only takes note that nobody wants them.
///
/// # Errors
/// As [`client`] and [`webhook`].
pub fn sender(settings: &Settings, registry: &Registry) -> anyhow::Result<Sender> {
    let mut webhooks = Vec::new();
    for known in &settings.notify.webhooks {
        webhooks.push((webhook(known)?, known.events.clone()));
    }
    Ok(Sender::new(
        Arc::clone(&registry.store),
        Arc::clone(&registry.clock),
        Arc::new(SystemClock),
        client(settings)?,
        webhooks,
        Pace::patient(settings.notify.give_up_after),
    ))
}
