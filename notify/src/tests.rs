//! Against small servers on this machine: what arrives, what is refused, and what happens when the other side misbehaves.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_registry::address::Allowed;
use tidegate_registry::audit::AuditFilter;
use tidegate_registry::notice::{
    DeliveryState, NewNotice, Notice, NoticeEvent, NoticeFilter, Outbox as _, Subscription,
};
use tidegate_registry::store::Store;
use tidegate_registry::time::{Clock, Instant};
use tidegate_store::SqliteStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

const SECRET: &[u8] = b"between us";

/// What the server does with one request, in order; afterwards it answers 200.
#[derive(Debug, Clone, Copy)]
enum Does {
    Answer(u16),
    /// To a place on this very server.
    Redirect,
    /// Takes the request and closes without a word.
    HangUp,
    /// Takes the request and says nothing for longer than anybody waits.
    Silence,
    /// Answers with a body that does not end.
    Pour,
}

/// A receiver: keeps every request that reached it whole.
struct Receiver {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    _serving: JoinSet<()>,
}

impl Receiver {
    async fn start(script: &[Does]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (kept, mut script) = (Arc::clone(&requests), VecDeque::from(script.to_vec()));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (kept, does) = (Arc::clone(&kept), script.pop_front().unwrap_or(Does::Answer(200)));
                connections.spawn(async move { drop(serve(stream, does, &kept).await) });
            }
        });
        Self { port, requests, _serving: serving }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn webhook(&self, host: &str) -> Webhook {
        webhook(host, self.port)
    }
}

fn webhook(host: &str, port: u16) -> Webhook {
    let url = format!("http://{host}:{port}/hook?token=hush").parse().unwrap();
    Webhook { name: "oncall".to_owned(), url, secret: SECRET.to_vec() }
}

async fn serve(mut stream: TcpStream, does: Does, kept: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let request = loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&piece[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = header(head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if body.len() >= length {
            break text;
        }
    };
    kept.lock().unwrap().push(request);
    let head = match does {
        Does::Answer(status) => format!("HTTP/1.1 {status} Said\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"),
        Does::Redirect => "HTTP/1.1 307 Elsewhere\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n".to_owned(),
        Does::HangUp => return Ok(()),
        Does::Silence => return std::future::pending().await,
        Does::Pour => "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".to_owned(),
    };
    stream.write_all(head.as_bytes()).await?;
    if !matches!(does, Does::Pour) {
        return Ok(());
    }
    loop {
        stream.write_all(&[b'x'; 1 << 16]).await?;
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (known, value) = line.split_once(": ")?;
        known.eq_ignore_ascii_case(name).then_some(value)
    })
}

fn at(seconds: i64) -> Instant {
    chrono::DateTime::from_timestamp(seconds, 0).unwrap()
}

#[derive(Debug)]
struct Still(Instant);

impl Clock for Still {
    fn now(&self) -> Instant {
        self.0
    }

    fn real_until(&self, _at: Instant) -> Duration {
        Duration::ZERO
    }
}

fn allowed(hosts: &[&str], private: &[&str]) -> Allowed {
    Allowed {
        hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
        private_hosts: Vec::new(),
        private_networks: private.iter().map(|network| network.parse().unwrap()).collect(),
    }
}

/// A registry with one notice, and what delivers it fast.
struct World {
    store: Arc<SqliteStore>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(&folder.path().join("registry.db")).await.unwrap());
        let world = Self { store, _folder: folder };
        world.store.notify(notice()).await.unwrap();
        world
    }

    fn sender(&self, webhook: Webhook, give_up_after: Duration) -> Sender {
        let pace = Pace {
            look: Duration::from_millis(20),
            pause: Duration::from_millis(1),
            pause_max: Duration::from_millis(4),
            give_up_after,
        };
        let client = Client::new("flights", allowed(&["127.0.0.1", "localhost"], &["127.0.0.0/8", "::1"])).unwrap();
        let (clock, real) = (Arc::new(Still(at(0))), Arc::new(Still(at(1_363_000_000))));
        Sender::new(self.store.clone(), clock, real, client, vec![(webhook, Vec::new())], pace)
    }

    async fn only(&self) -> (Notice, tidegate_registry::notice::Delivery) {
        let (notice, mut deliveries) = self.store.notices(&NoticeFilter::default()).await.unwrap().remove(0);
        (notice, deliveries.remove(0))
    }

    /// Lets the sender work until the only delivery has ended.
    async fn ends(&self, sender: Sender) -> tidegate_registry::notice::Delivery {
        let cancel = CancellationToken::new();
        let ended = async {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let deliveries = self.store.notices(&NoticeFilter::default()).await.unwrap().remove(0).1;
                if let Some(ended) = deliveries.into_iter().find(|delivery| delivery.state != DeliveryState::Due) {
                    break ended;
                }
            }
        };
        let ended = tokio::select! {
            () = sender.run(cancel.clone()) => panic!("the sender stopped"),
            ended = tokio::time::timeout(Duration::from_secs(60), ended) => ended.expect("it ends in time"),
        };
        cancel.cancel();
        ended
    }
}

fn notice() -> NewNotice {
    NewNotice::new(NoticeEvent::RunBlocked, "run 1", at(1_357_000_000), "a run was stopped")
        .by("ana")
        .with(serde_json::json!({ "dag": "daily", "why": "too few \"rows\", ünïcode" }))
}

async fn stored() -> Notice {
    World::new().await.store.notices(&NoticeFilter::default()).await.unwrap().remove(0).0
}

#[tokio::test]
async fn a_notice_arrives_signed_and_says_what_happened() {
    let (world, receiver) = (World::new().await, Receiver::start(&[]).await);
    let sender = world.sender(receiver.webhook("127.0.0.1"), Duration::from_secs(60));
    assert_eq!(sender.step(&CancellationToken::new()).await.unwrap(), 1);
    assert_eq!(sender.step(&CancellationToken::new()).await.unwrap(), 0, "once");
    let requests = receiver.requests();
    assert_eq!(requests.len(), 1);
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /hook?token=hush HTTP/1.1\r\n"), "{head}");
    let (notice, delivery) = world.only().await;
    assert_eq!((delivery.state, delivery.attempts), (DeliveryState::Sent, 1));
    assert_eq!(header(head, "tidegate-notice"), Some(notice.id.to_string().as_str()));
    assert_eq!(header(head, "tidegate-event"), Some("run.blocked"));
    assert_eq!(header(head, "content-type"), Some("application/json"));
    let expected = signature::sign(SECRET, 1_363_000_000, body.as_bytes());
    assert_eq!(header(head, "tidegate-signature"), Some(expected.as_str()));
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "id": notice.id, "event": "run.blocked", "project": "flights", "subject": "run 1",
            "at": "2013-01-01T00:26:40Z", "message": "a run was stopped", "actor": "ana",
            "detail": { "dag": "daily", "why": "too few \"rows\", ünïcode" },
        })
    );
}

/// Whatever goes wrong, it is the same notice: the same id, and the same bytes.
#[tokio::test]
async fn what_fails_is_sent_again_until_the_receiver_has_it() {
    let world = World::new().await;
    let script = [Does::Answer(500), Does::HangUp, Does::Answer(429), Does::Redirect, Does::Answer(204)];
    let receiver = Receiver::start(&script).await;
    let ended = world.ends(world.sender(receiver.webhook("127.0.0.1"), Duration::from_secs(60))).await;
    assert_eq!((ended.state, ended.attempts), (DeliveryState::Sent, 5));
    let requests = receiver.requests();
    assert_eq!(requests.len(), 5, "the redirect was not followed");
    let of = |request: &String| {
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        (header(head, "tidegate-notice").unwrap().to_owned(), body.to_owned())
    };
    assert!(requests.iter().all(|request| of(request) == of(&requests[0])));
    let attempt = |request: &String| header(request, "tidegate-attempt").unwrap().to_owned();
    assert_eq!(requests.iter().map(attempt).collect::<Vec<_>>(), ["1", "2", "3", "4", "5"]);
}

/// The receiver took it and the answer got lost: it comes a second time, and its id tells.
#[tokio::test]
async fn after_a_lost_answer_a_notice_comes_twice_with_one_id() {
    let (world, receiver) = (World::new().await, Receiver::start(&[Does::HangUp]).await);
    let ended = world.ends(world.sender(receiver.webhook("127.0.0.1"), Duration::from_secs(60))).await;
    assert_eq!(ended.attempts, 2);
    let requests = receiver.requests();
    let id = |request: &String| header(request, "tidegate-notice").unwrap().to_owned();
    assert_eq!(requests.iter().map(id).collect::<Vec<_>>(), vec![world.only().await.0.id.to_string(); 2]);
}

#[tokio::test]
async fn what_nobody_takes_is_given_up_and_that_is_audited() {
    let world = World::new().await;
    // Nobody listens there, and nobody else is given the port.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let gone = webhook("127.0.0.1", nobody.local_addr().unwrap().port());
    // It is looked at while it is young, however late the sender comes.
    let all = Subscription { webhook: gone.name.clone(), events: Vec::new() };
    assert_eq!(world.store.notices_route(&[all], Duration::from_secs(60), at(0)).await.unwrap(), 1);
    let ended = world.ends(world.sender(gone, Duration::from_millis(300))).await;
    assert_eq!(ended.state, DeliveryState::GivenUp);
    let error = ended.error.unwrap();
    assert!(error.contains("refused") && !error.contains("hush"), "the URL may hold a token: {error}");
    let told = AuditFilter { action: Some("notice_give_up".to_owned()), ..AuditFilter::default() };
    let told = world.store.audit_events(&told).await.unwrap();
    assert_eq!(told[0].what.subject, world.only().await.0.id.to_string());
}

#[tokio::test]
async fn several_senders_deliver_each_notice_once() {
    let (world, receiver) = (World::new().await, Receiver::start(&[]).await);
    for _ in 0..19 {
        world.store.notify(notice()).await.unwrap();
    }
    let mut senders = JoinSet::new();
    for _ in 0..4 {
        let sender = world.sender(receiver.webhook("127.0.0.1"), Duration::from_secs(60));
        senders.spawn(async move { sender.step(&CancellationToken::new()).await.unwrap() });
    }
    assert_eq!(senders.join_all().await.iter().sum::<u64>(), 20);
    assert_eq!(receiver.requests().len(), 20);
}

#[tokio::test]
async fn only_hosts_that_are_allowed_are_spoken_to() {
    let receiver = Receiver::start(&[]).await;
    let client = Client::new("flights", allowed(&["hooks.example.com"], &["127.0.0.0/8"])).unwrap();
    let refused = client.send(&receiver.webhook("127.0.0.1"), &stored().await, 1, at(0)).await;
    assert!(matches!(&refused, Err(SendError::HostNotAllowed(host)) if host == "127.0.0.1"), "{refused:?}");
    assert_eq!(receiver.requests().len(), 0);
}

/// In whatever form: a name that resolves to this machine, an address that stands in the URL, mapped, or as one number.
#[tokio::test]
async fn addresses_that_are_not_public_are_refused_when_connecting() {
    let receiver = Receiver::start(&[]).await;
    let notice = stored().await;
    for host in
        ["localhost", "127.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "2130706433", "0x7f.1", "0.0.0.0", "169.254.169.254"]
    {
        let webhook = receiver.webhook(host);
        let known = webhook.url.host_str().unwrap().to_owned();
        let mut open = allowed(&[], &[]);
        open.hosts = vec![known.parse().unwrap()];
        let refused = Client::new("flights", open).unwrap().send(&webhook, &notice, 1, at(0)).await;
        assert!(matches!(&refused, Err(SendError::AddressNotAllowed { .. })), "{host}: {refused:?}");
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("notify.allowed_private") && !text.contains("hush"), "{text}");
    }
    assert_eq!(receiver.requests().len(), 0);
    // The operator said so: by network, or by name.
    let mut named = allowed(&["localhost"], &[]);
    named.private_hosts = vec!["localhost".parse().unwrap()];
    for open in [named, allowed(&["localhost"], &["127.0.0.0/8", "::1"])] {
        Client::new("flights", open).unwrap().send(&receiver.webhook("localhost"), &notice, 1, at(0)).await.unwrap();
    }
    assert_eq!(receiver.requests().len(), 2);
}

#[tokio::test]
async fn a_receiver_that_says_nothing_is_not_waited_for_for_ever() {
    let notice = stored().await;
    let receiver = Receiver::start(&[Does::Silence; 20]).await;
    let patience = Duration::from_millis(250);
    let client = Client::with_patience("flights", allowed(&["127.0.0.1"], &["127.0.0.0/8"]), patience).unwrap();
    let webhook = receiver.webhook("127.0.0.1");
    // On a busy machine that may be over before the request has arrived.
    for attempt in 1..=20 {
        let sent = client.send(&webhook, &notice, attempt, at(0));
        let silent = tokio::time::timeout(Duration::from_secs(60), sent).await.unwrap();
        assert!(matches!(&silent, Err(SendError::NoAnswer(text)) if text == "no answer within 0.25 s"), "{silent:?}");
        if !receiver.requests().is_empty() {
            break;
        }
    }
    assert!(!receiver.requests().is_empty(), "it may have it all the same");
}

#[tokio::test]
async fn an_answer_without_an_end_is_not_read() {
    let receiver = Receiver::start(&[Does::Pour]).await;
    let client = Client::new("flights", allowed(&["127.0.0.1"], &["127.0.0.0/8"])).unwrap();
    let (webhook, notice) = (receiver.webhook("127.0.0.1"), stored().await);
    let sent = client.send(&webhook, &notice, 1, at(0));
    tokio::time::timeout(Duration::from_secs(60), sent).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_notice_that_is_too_large_goes_without_its_detail() {
    let receiver = Receiver::start(&[]).await;
    let mut notice = stored().await;
    notice.what.detail = serde_json::json!({ "views": vec!["carrier_delays@v1"; 50_000] });
    let client = Client::new("flights", allowed(&["127.0.0.1"], &["127.0.0.0/8"])).unwrap();
    client.send(&receiver.webhook("127.0.0.1"), &notice, 1, at(0)).await.unwrap();
    let request = receiver.requests().remove(0);
    assert!(request.len() < 2_000 && request.contains("too large for a notice"), "{request}");
}

#[test]
fn nothing_shows_the_secret_or_the_url() {
    let url = "https://hooks.example.com/T0KEN".parse().unwrap();
    let shown = format!("{:?}", Webhook { name: "oncall".into(), url, secret: SECRET.to_vec() });
    assert!(shown.contains("hooks.example.com") && !shown.contains("T0KEN") && !shown.contains("98"), "{shown}");
}
