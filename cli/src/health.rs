//! `/healthz`, `/readyz` and `/metrics` of a process: for supervisors, load balancers, scrapers and people.
//!
//! *Healthy* means that the loops of all its roles still turn: a process that does not should be started anew. It says
//! nothing about other parts, for a restart mends none of them. *Ready* means that it can do its work now: the registry
//! answers, and nobody has asked it to stop. Both are plain HTTP with a line of JSON, tell no secrets, and change nothing, as
//! do the metrics ([`crate::metrics`]); they listen on the address that the operator gives, and nowhere when none is given.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tidegate_registry::pulse::Pulse;
use tidegate_registry::store::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// A loop that has not turned for longer than this hangs. Each turns at least every second, and waits for the registry for
/// less than half of this.
const STILL_MAX: Duration = Duration::from_secs(120);

/// How long the registry may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Where a process tells how it is.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Listen {
    /// Answer /healthz, /readyz and /metrics on this address, as in `127.0.0.1:9464` [default: not at all]
    #[arg(long, value_name = "ADDRESS", env = "TIDEGATE_HEALTH", hide_env_values = true)]
    pub health: Option<SocketAddr>,
}

/// What is asked about.
#[derive(Debug, Clone)]
pub struct Health {
    /// Each role's name and pulse.
    pub pulses: Vec<(&'static str, Pulse)>,
    /// The registry.
    pub store: Arc<dyn Store>,
    /// How the project stands.
    pub metrics: Metrics,
    /// Cancelled when the process is to stop.
    pub stopping: CancellationToken,
}

/// Answers on `address` until `stop`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, health: Health, stop: CancellationToken) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("listening for health checks on `{address}`"))?;
    let bound = listener.local_addr().context("listening for health checks")?;
    tracing::info!("answering /healthz, /readyz and /metrics on http://{bound}");
    let routes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .context("answering health checks")
}

async fn healthz(State(health): State<Health>) -> impl IntoResponse {
    let still = health.pulses.iter().any(|(_, pulse)| pulse.age() > STILL_MAX);
    let roles: serde_json::Map<_, _> = health
        .pulses
        .iter()
        .map(|(role, pulse)| ((*role).to_owned(), json!({ "turned_seconds_ago": pulse.age().as_secs() })))
        .collect();
    let status = if still { "stuck" } else { "healthy" };
    answer(!still, &json!({ "status": status, "version": env!("CARGO_PKG_VERSION"), "roles": roles }))
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    if health.stopping.is_cancelled() {
        return answer(false, &json!({ "status": "stopping" }));
    }
    // What is wrong in detail is in the log: error texts may name hosts.
    match tokio::time::timeout(ANSWER_MAX, health.store.info()).await {
        Ok(Ok(_)) => answer(true, &json!({ "status": "ready" })),
        Ok(Err(_)) => answer(false, &json!({ "status": "not ready", "reason": "the registry is not available" })),
        Err(_) => answer(false, &json!({ "status": "not ready", "reason": "the registry does not answer in time" })),
    }
}

async fn metrics(State(health): State<Health>) -> Response {
    let roles = health.pulses.iter().map(|(role, pulse)| (*role, pulse.age())).collect();
    match tokio::time::timeout(ANSWER_MAX, health.metrics.text(roles)).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response(),
        failed => {
            // As above.
            if let Ok(Err(error)) = failed {
                tracing::warn!("The metrics could not be read: {error:#}");
            }
            answer(false, &json!({ "status": "not ready", "reason": "the registry is not available" })).into_response()
        }
    }
}

fn answer(good: bool, body: &serde_json::Value) -> impl IntoResponse + use<> {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n"))
}
