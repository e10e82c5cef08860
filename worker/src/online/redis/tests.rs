//! What every online store must keep, on real servers of every arrangement.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tidegate_registry::definitions::settings::RedisLocation;
use tidegate_servers::{Redis, RedisCluster, RedisOptions, RedisSentinel};
use tokio::sync::OnceCell;

use super::*;
use crate::online::conformance::Fixture;

/// A project of its own, so that tests share a server.
pub(super) fn project() -> ProjectName {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("flights{}", NEXT.fetch_add(1, Ordering::Relaxed)).parse().unwrap()
}

pub(super) async fn open(url: &str, project: &ProjectName) -> Arc<RedisOnline> {
    Arc::new(RedisOnline::open(&RedisLocation::parse(url).unwrap(), project, false).await.unwrap())
}

async fn fixture_at(url: &str) -> Fixture {
    let project = project();
    Fixture { store: open(url, &project).await, twin: open(url, &project).await, project, guard: Box::new(()) }
}

mod standalone {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVER: OnceCell<Redis> = OnceCell::const_new();
        let server = SERVER.get_or_init(async || Redis::start().unwrap()).await;
        fixture_at(&server.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::standalone::fixture);
}

mod encrypted {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVER: OnceCell<Redis> = OnceCell::const_new();
        let options = || RedisOptions { password: Some("p@ss".to_owned()), tls: true, settings: Vec::new() };
        let server = SERVER.get_or_init(async || Redis::start_with(options()).unwrap()).await;
        fixture_at(&server.url().replace("p@ss", "p%40ss")).await
    }

    crate::online_conformance!(crate::online::redis::tests::encrypted::fixture);
}

mod behind_a_sentinel {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVERS: OnceCell<RedisSentinel> = OnceCell::const_new();
        let servers = SERVERS.get_or_init(async || RedisSentinel::start().unwrap()).await;
        fixture_at(&servers.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::behind_a_sentinel::fixture);
}

mod cluster {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVERS: OnceCell<RedisCluster> = OnceCell::const_new();
        let servers = SERVERS.get_or_init(async || RedisCluster::start().unwrap()).await;
        fixture_at(&servers.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::cluster::fixture);
}

/// The servers of a cluster and those behind a sentinel speak encrypted with us and with each other, and ask for a password.
fn guarded() -> RedisOptions {
    RedisOptions { password: Some("open".to_owned()), tls: true, settings: Vec::new() }
}

mod encrypted_behind_a_sentinel {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVERS: OnceCell<RedisSentinel> = OnceCell::const_new();
        let servers = SERVERS.get_or_init(async || RedisSentinel::start_with(&guarded()).unwrap()).await;
        fixture_at(&servers.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::encrypted_behind_a_sentinel::fixture);
}

mod encrypted_cluster {
    use super::*;

    async fn fixture() -> Fixture {
        static SERVERS: OnceCell<RedisCluster> = OnceCell::const_new();
        let servers = SERVERS.get_or_init(async || RedisCluster::start_with(&guarded()).unwrap()).await;
        fixture_at(&servers.url()).await
    }

    crate::online_conformance!(crate::online::redis::tests::encrypted_cluster::fixture);
}
