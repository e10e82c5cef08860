//! Posting one notice to one webhook.
//!
//! **Where a request goes is decided by addresses.** The host must be one that the operator allowed; then every address
//! that its name resolves to is judged, and the connection goes to one of those and to no other: the resolver that judges
//! is the one that the connection uses, so a name cannot change its answer in between. Redirects are not followed, no
//! proxy stands in between, and the body of the answer is not read.

use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use serde_json::json;
use tidegate_registry::address::Allowed;
use tidegate_registry::notice::Notice;
use tidegate_registry::time::{Instant, format_instant};
use url::{Host, Url};

use crate::signature::sign;

/// How long a connection may take, and the whole exchange.
const CONNECT_MAX: Duration = Duration::from_secs(5);
pub(crate) const EXCHANGE_MAX: Duration = Duration::from_secs(15);

/// A body that would be larger goes without its detail, in bytes.
const BODY_MAX: usize = 256 << 10;

/// Where notices go.
#[derive(Clone)]
pub struct Webhook {
    /// Its name.
    pub name: String,
    /// Where it is. May hold a token in its path, so it is never shown.
    pub url: Url,
    /// What both sides know. Never shown.
    pub secret: Vec<u8>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("name", &self.name).field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

/// Why a notice was not delivered, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The host is not among those that the operator allowed.
    #[error("the host `{0}` is not among `notify.allowed_hosts`")]
    HostNotAllowed(String),
    /// The address is not public and was not named.
    #[error(
        "`{host}` is at {address}, which is not a public address: `notify.allowed_private` must name the host or a network"
    )]
    AddressNotAllowed {
        /// The host of the URL.
        host: String,
        /// One of its addresses.
        address: IpAddr,
    },
    /// The receiver said no, or sent elsewhere.
    #[error("the receiver answered {status}{}", hint(*status))]
    Status {
        /// The status of HTTP.
        status: u16,
    },
    /// There was no answer.
    #[error("{0}")]
    NoAnswer(String),
}

fn hint(status: u16) -> &'static str {
    if (300..400).contains(&status) { ": redirects are not followed, name the place itself" } else { "" }
}

/// Posts notices.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    patience: Duration,
    allowed: Arc<Allowed>,
    project: String,
}

impl Client {
    /// A client for the notices of `project` that speaks only to what `allowed` allows.
    ///
    /// # Errors
    /// [`SendError::NoAnswer`] when the system's certificates cannot be read.
    pub fn new(project: impl Into<String>, allowed: Allowed) -> Result<Self, SendError> {
        Self::with_patience(project, allowed, EXCHANGE_MAX)
    }

    /// The same that waits for an answer no longer than `patience`.
    pub(crate) fn with_patience(
        project: impl Into<String>,
        allowed: Allowed,
        patience: Duration,
    ) -> Result<Self, SendError> {
        let allowed = Arc::new(allowed);
        let http = reqwest::Client::builder()
            .dns_resolver(Arc::new(Checked { allowed: Arc::clone(&allowed) }))
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_MAX)
            .timeout(patience)
            .pool_max_idle_per_host(0)
            .referer(false)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| SendError::NoAnswer(chain(&error.without_url())))?;
        Ok(Self { http, patience, allowed, project: project.into() })
    }

    /// Posts `notice` to `webhook`, signed at `now` (real time).
    ///
    /// # Errors
    /// [`SendError`]; the receiver may have it all the same when there was no answer.
    pub async fn send(&self, webhook: &Webhook, notice: &Notice, attempt: u32, now: Instant) -> Result<(), SendError> {
        self.require_allowed(&webhook.url)?;
        let body = self.body(notice);
        let request = self
            .http
            .post(webhook.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("Tidegate-Notice", notice.id.to_string())
            .header("Tidegate-Event", notice.what.event.as_str())
            .header("Tidegate-Attempt", attempt.to_string())
            .header("Tidegate-Signature", sign(&webhook.secret, now.timestamp(), body.as_bytes()))
            .body(body);
        let answer = request.send().await.map_err(|error| no_answer(error, self.patience))?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(SendError::Status { status: answer.status().as_u16() })
    }

    /// Names are judged by the resolver; an address that stands in the URL itself never gets there.
    fn require_allowed(&self, url: &Url) -> Result<(), SendError> {
        let host = url.host_str().unwrap_or_default();
        if !self.allowed.has_host(host) {
            return Err(SendError::HostNotAllowed(host.to_owned()));
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        self.require_permitted(host, address)
    }

    fn require_permitted(&self, host: &str, address: IpAddr) -> Result<(), SendError> {
        permitted(&self.allowed, host, address)
    }

    /// The same bytes at every attempt.
    fn body(&self, notice: &Notice) -> String {
        let what = &notice.what;
        let mut body = json!({
            "id": notice.id,
            "event": what.event,
            "project": self.project,
            "subject": what.subject,
            "at": format_instant(what.at),
            "message": what.message,
            "actor": what.actor,
            "detail": what.detail,
        });
        let text = body.to_string();
        if text.len() <= BODY_MAX {
            return text;
        }
        body["detail"] = json!({ "left_out": "it is too large for a notice" });
        body.to_string()
    }
}

fn permitted(allowed: &Allowed, host: &str, address: IpAddr) -> Result<(), SendError> {
    if allowed.permits(host, address) {
        return Ok(());
    }
    Err(SendError::AddressNotAllowed { host: host.to_owned(), address })
}

/// Resolves names as the system does, and refuses a name of which any address is not permitted.
#[derive(Debug)]
struct Checked {
    allowed: Arc<Allowed>,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = Arc::clone(&self.allowed);
        Box::pin(async move {
            let host = name.as_str();
            // The port is put in by whoever connects.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host, 0)).await?.collect();
            for address in &found {
                permitted(&allowed, host, address.ip())?;
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// A refusal of the resolver comes back wrapped in what it prevented.
fn no_answer(error: reqwest::Error, patience: Duration) -> SendError {
    let error = error.without_url();
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(known) = cause {
        if let Some(SendError::AddressNotAllowed { host, address }) = known.downcast_ref() {
            return SendError::AddressNotAllowed { host: host.clone(), address: *address };
        }
        cause = known.source();
    }
    if error.is_timeout() {
        return SendError::NoAnswer(format!("no answer within {} s", patience.as_secs_f32()));
    }
    SendError::NoAnswer(chain(&error))
}

/// All levels of an error, on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(level) = cause {
        text.push_str(": ");
        text.push_str(&level.to_string());
        cause = level.source();
    }
    text
}
