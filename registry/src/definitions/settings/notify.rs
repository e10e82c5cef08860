//! Whom notices are sent to: webhooks, and the hosts and addresses that may be spoken to at all.
//!
//! What can be known without asking anybody is checked here, before anything is sent: hosts that are not allowed,
//! addresses that stand in the URL and are not public, URLs without encryption. What a name resolves to is judged by the
//! sender, whenever it connects.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use url::{Host, Url};

use super::Secret;
use super::written::{NotifyFile, ProjectFile, WebhookFile};
use crate::address::{Allowed, HostPattern, Network, is_public};
use crate::definitions::read::{At, Field};
use crate::definitions::scalars;
use crate::diagnostics::{Diagnostic, ids};
use crate::ids::is_name;
use crate::notice::NoticeEvent;

/// Without anybody's word, a notice is given up after so long.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3 * 86_400);

/// Whom notices are sent to.
#[derive(Debug, Clone, PartialEq)]
pub struct NotifySettings {
    /// Whom, by name in order.
    pub webhooks: Vec<WebhookSettings>,
    /// What may be spoken to.
    pub allowed: Allowed,
    /// A notice that could not be delivered for so long is given up.
    pub give_up_after: Duration,
}

impl Default for NotifySettings {
    fn default() -> Self {
        Self { webhooks: Vec::new(), allowed: Allowed::default(), give_up_after: GIVE_UP_AFTER }
    }
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookSettings {
    /// Its name.
    pub name: String,
    /// Where it is: a valid URL. Chat programs put tokens into it.
    pub url: Secret,
    /// The host in it, as allowed.
    pub host: String,
    /// The environment variable with the secret that signs.
    pub secret_env: String,
    /// Patterns of events that it wants; empty for all.
    pub events: Vec<String>,
}

/// What fills `${NAME}` in; reports what it cannot.
pub(super) type Fill<'a> = &'a mut dyn FnMut(&At<String>, &mut Vec<Diagnostic>) -> Option<String>;

/// What `written` means; what is wrong is reported.
pub(super) fn notify(written: Option<&NotifyFile>, fill: Fill<'_>, out: &mut Vec<Diagnostic>) -> NotifySettings {
    let Some(written) = written else { return NotifySettings::default() };
    let allowed = Allowed {
        hosts: patterns(&written.allowed_hosts, "allowed_hosts", out),
        private_hosts: Vec::new(),
        private_networks: Vec::new(),
    };
    let allowed = with_private(allowed, &written.allowed_private, out);
    let mut names = BTreeSet::new();
    let mut webhooks = Vec::new();
    for file in written.webhooks.get().into_iter().flat_map(|list| &list.value) {
        let Some(webhook) = webhook(&file.value, &allowed, fill, out) else { continue };
        if !names.insert(webhook.name.clone()) {
            let fact = format!("there are two webhooks `{}`", webhook.name);
            out.push(Diagnostic::error(ids::DUPLICATE_NAME, file.origin.clone(), fact).with_label("named before"));
            continue;
        }
        webhooks.push(webhook);
    }
    let give_up_after = written.give_up_after.get().map_or(Some(GIVE_UP_AFTER), |text| {
        let duration = scalars::parse_duration(&text.value).filter(|duration| !duration.is_zero());
        if duration.is_none() {
            out.push(
                wrong(text, "`notify.give_up_after` is not a duration above zero")
                    .with_label("expected a number and `s`, `m`, `h` or `d`")
                    .with_help("write for example `3d`"),
            );
        }
        duration
    });
    NotifySettings { webhooks, allowed, give_up_after: give_up_after.unwrap_or(GIVE_UP_AFTER) }
}

/// The names of all webhooks in `tidegate.yaml`, those of every profile included: where a profile sends nothing, what the
/// definitions name is right all the same.
pub(in crate::definitions) fn webhook_names(file: &ProjectFile) -> Vec<String> {
    let profiles = file.profiles.get().into_iter().flat_map(|profiles| &profiles.value.0);
    let sections = std::iter::once(&file.notify).chain(profiles.map(|(_, profile)| &profile.notify));
    let webhooks = sections.filter_map(Field::get).filter_map(|notify| notify.webhooks.get());
    webhooks.flat_map(|list| &list.value).filter_map(|webhook| webhook.name.value()).collect()
}

fn wrong<T>(at: &At<T>, fact: impl Into<String>) -> Diagnostic {
    Diagnostic::error(ids::BAD_SETTING, at.origin.clone(), fact.into())
}

fn patterns(list: &Field<Vec<At<String>>>, key: &str, out: &mut Vec<Diagnostic>) -> Vec<HostPattern> {
    let texts = list.get().into_iter().flat_map(|list| &list.value);
    texts.filter_map(|text| pattern(text, key, out)).collect()
}

fn pattern(text: &At<String>, key: &str, out: &mut Vec<Diagnostic>) -> Option<HostPattern> {
    match HostPattern::from_str(&text.value) {
        Ok(pattern) => Some(pattern),
        Err(fact) => {
            let help = "write a name or an address, as in `hooks.example.com`, `*.example.com` or `192.0.2.7`, without \
                        `https://` and path";
            out.push(wrong(text, format!("in `notify.{key}` {fact}")).with_label("expected a host").with_help(help));
            None
        }
    }
}

fn with_private(mut allowed: Allowed, list: &Field<Vec<At<String>>>, out: &mut Vec<Diagnostic>) -> Allowed {
    for text in list.get().into_iter().flat_map(|list| &list.value) {
        if let Ok(network) = Network::from_str(&text.value) {
            allowed.private_networks.push(network);
        } else if text.value.contains('/') {
            let fact = format!("in `notify.allowed_private` `{}` is no range of addresses", text.value);
            out.push(wrong(text, fact).with_help("write for example `10.1.0.0/16` or `fd12::/16`"));
        } else {
            allowed.private_hosts.extend(pattern(text, "allowed_private", out));
        }
    }
    allowed
}

fn webhook(
    file: &WebhookFile,
    allowed: &Allowed,
    fill: Fill<'_>,
    out: &mut Vec<Diagnostic>,
) -> Option<WebhookSettings> {
    let before = out.len();
    let name = file.name.get()?;
    if !is_name(&name.value) {
        let fact = format!("`{}` is not a valid name of a webhook", name.value);
        out.push(
            Diagnostic::error(ids::BAD_NAME, name.origin.clone(), fact)
                .with_label(format!("expected {}", crate::ids::NAME_PATTERN)),
        );
    }
    let url = file.url.get()?;
    let text = fill(url, out)?;
    let host = match place(&text, allowed) {
        Ok(host) => host,
        Err((fact, help)) => {
            out.push(wrong(url, format!("the URL of `{}` {fact}", name.value)).with_help(help));
            return None;
        }
    };
    let secret = file.secret_env.get()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if secret.value.is_empty() || !secret.value.chars().all(plain) {
        // It may be the secret itself: never repeated.
        out.push(
            wrong(secret, format!("`secret_env` of `{}` is not the name of an environment variable", name.value))
                .with_help("the secret itself stays out of the file: set it in the environment of the scheduler, and name the variable here"),
        );
    }
    let mut events = Vec::new();
    for pattern in file.events.get().into_iter().flat_map(|list| &list.value) {
        if !NoticeEvent::ALL.iter().any(|event| event.matches(&pattern.value)) {
            let known: Vec<String> = NoticeEvent::ALL.iter().map(|event| format!("`{event}`")).collect();
            out.push(
                wrong(pattern, format!("`{}` means no event", pattern.value))
                    .with_help(format!("write `run.*`, or one of {}", known.join(", "))),
            );
        }
        events.push(pattern.value.clone());
    }
    (out.len() == before).then(|| WebhookSettings {
        name: name.value.clone(),
        url: Secret::new(text),
        host,
        secret_env: secret.value.clone(),
        events,
    })
}

/// The host of a URL that may be spoken to; else what is wrong, and what to do.
fn place(text: &str, allowed: &Allowed) -> Result<String, (String, String)> {
    let help = || "write for example `https://hooks.example.com/tidegate`".to_owned();
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(|| ("is not an `https://` URL".to_owned(), help()))?;
    let host = url.host().ok_or_else(|| ("names no host".to_owned(), help()))?;
    let host_text = url.host_str().unwrap_or_default().to_owned();
    if !url.username().is_empty() || url.password().is_some() {
        return Err((
            "holds a user or password".to_owned(),
            "notices are signed instead: the receiver checks `Tidegate-Signature`".to_owned(),
        ));
    }
    if !allowed.has_host(&host_text) {
        return Err((
            format!("names the host `{host_text}`, which is not allowed"),
            format!("add it to `notify.allowed_hosts`, as in `allowed_hosts: [{host_text}]`"),
        ));
    }
    let address = match host {
        Host::Ipv4(address) => Some(IpAddr::V4(address)),
        Host::Ipv6(address) => Some(IpAddr::V6(address)),
        Host::Domain(_) => None,
    };
    let name_is_local = host_text == "localhost" || host_text.ends_with(".localhost");
    let is_private = address.map_or(name_is_local, |address| !is_public(address));
    let is_named = allowed.has_private_host(&host_text)
        && address.is_none_or(|address| allowed.permits(&host_text, address))
        || address.is_some_and(|address| allowed.private_networks.iter().any(|network| network.contains(address)));
    if is_private && !is_named {
        return Err((
            format!("leads to `{host_text}`, which is not on the open internet"),
            "when that is meant, name the host or its network under `notify.allowed_private`".to_owned(),
        ));
    }
    if url.scheme() == "http" && !is_named {
        return Err((
            "is not encrypted".to_owned(),
            "use `https://`; `http://` is for hosts and networks named under `notify.allowed_private`".to_owned(),
        ));
    }
    Ok(host_text)
}
