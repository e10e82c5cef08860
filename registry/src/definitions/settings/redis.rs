//! Where a Redis is: `redis://`, `redis-sentinel://` and `redis-cluster://`, each with an `s` after `redis` for TLS.
//!
//! ```text
//! redis://[user[:password]@]host[:6379][/db]
//! redis-sentinel://[user[:password]@]host[:26379][,host…]/service[?db=0]
//! redis-cluster://[user[:password]@]host[:6379][,host…]
//! ```
//!
//! Options follow a `?`: `ca=PATH` trusts the authorities in a PEM file instead of the machine's, `allow_eviction=true`
//! accepts a server that throws keys away when it is full, `sentinel_auth=true` gives user and password to the sentinels
//! too, `db=N` chooses a database. There is no option that a password would fit in, so that none is ever shown.

use std::fmt;
use std::path::PathBuf;

use super::Secret;

/// The port of a Redis that names none.
const PORT: u16 = 6379;
/// The port of a sentinel that names none.
const SENTINEL_PORT: u16 = 26379;

/// Where a Redis is, and how to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisLocation {
    /// How its servers are arranged.
    pub topology: RedisTopology,
    /// The servers to ask first: one when standalone, the sentinels, or some nodes of the cluster. Never empty.
    pub nodes: Vec<RedisNode>,
    /// Whether connections are encrypted; certificates are always verified.
    pub tls: bool,
    /// The user; `None` for Redis's `default`.
    pub username: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// Whether the sentinels ask for the same user and password.
    pub sentinel_auth: bool,
    /// The database's number; 0 for a cluster.
    pub db: u32,
    /// A PEM file of certificate authorities to trust instead of the machine's; as written, so perhaps relative.
    pub ca: Option<PathBuf>,
    /// Whether a server that evicts keys is accepted.
    pub allow_eviction: bool,
}

/// How the servers of a Redis are arranged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisTopology {
    /// One server.
    Standalone,
    /// Sentinels that say which server is the primary of a service.
    Sentinel {
        /// The service's name, as the sentinels know it.
        service: String,
    },
    /// Servers that share the keys by slots.
    Cluster,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisNode {
    /// A name or an address (an IPv6 address without brackets).
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for RedisNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for RedisLocation {
    /// The URL without user, password and options.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.tls { "s" } else { "" };
        let kind = match self.topology {
            RedisTopology::Standalone => "",
            RedisTopology::Sentinel { .. } => "-sentinel",
            RedisTopology::Cluster => "-cluster",
        };
        let nodes: Vec<String> = self.nodes.iter().map(ToString::to_string).collect();
        write!(f, "redis{secure}{kind}://{}", nodes.join(","))?;
        match &self.topology {
            RedisTopology::Standalone => write!(f, "/{}", self.db),
            RedisTopology::Sentinel { service } if self.db == 0 => write!(f, "/{service}"),
            RedisTopology::Sentinel { service } => write!(f, "/{service}?db={}", self.db),
            RedisTopology::Cluster => Ok(()),
        }
    }
}

impl RedisLocation {
    /// Whether `text` has one of the schemes that [`RedisLocation::parse`] reads.
    pub fn is_redis(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| arrangement(scheme).is_some())
    }

    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it and what to write instead, without anything that could be a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) =
            text.split_once("://").ok_or("is not a URL: write for example `redis://localhost:6379/0`")?;
        let (tls, arrangement) = arrangement(scheme).ok_or(
            "has a scheme that is none of `redis`, `redis-sentinel`, `redis-cluster`, nor with TLS `rediss`, \
             `rediss-sentinel`, `rediss-cluster`",
        )?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user_info, hosts) =
            authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
        let (username, password) = user_info.map(credentials).transpose()?.unwrap_or_default();
        let port = if arrangement == Arrangement::Sentinel { SENTINEL_PORT } else { PORT };
        let nodes = hosts.split(',').map(|host| node(host, port)).collect::<Result<Vec<_>, _>>()?;
        let options = Options::parse(query)?;
        let path = decode(path)?;
        if path.contains('/') {
            return Err("has more than one part behind the servers".to_owned());
        }
        let (topology, db) = match arrangement {
            Arrangement::Standalone if nodes.len() > 1 => {
                return Err("names several servers: a cluster is `redis-cluster://…`, a set with sentinels \
                            `redis-sentinel://…`"
                    .to_owned());
            }
            Arrangement::Standalone => {
                let of_path = (!path.is_empty()).then(|| database(&path)).transpose()?;
                if of_path.is_some() && options.db.is_some() {
                    return Err("names its database twice, in the path and as `?db=`".to_owned());
                }
                (RedisTopology::Standalone, of_path.or(options.db).unwrap_or(0))
            }
            Arrangement::Sentinel if path.is_empty() => {
                return Err("does not say which service the sentinels watch: write \
                            `redis-sentinel://host:26379/SERVICE`"
                    .to_owned());
            }
            Arrangement::Sentinel => (RedisTopology::Sentinel { service: path }, options.db.unwrap_or(0)),
            Arrangement::Cluster if !(path.is_empty() || path == "0") || options.db.unwrap_or(0) != 0 => {
                return Err("names a database, but a cluster has only database 0: leave it out".to_owned());
            }
            Arrangement::Cluster => (RedisTopology::Cluster, 0),
        };
        if options.sentinel_auth && !matches!(topology, RedisTopology::Sentinel { .. }) {
            return Err("says `sentinel_auth`, but has no sentinels".to_owned());
        }
        if options.ca.is_some() && !tls {
            return Err("names a `ca` but is not encrypted: begin with `rediss`".to_owned());
        }
        Ok(Self {
            topology,
            nodes,
            tls,
            username,
            password,
            sentinel_auth: options.sentinel_auth,
            db,
            ca: options.ca,
            allow_eviction: options.allow_eviction,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrangement {
    Standalone,
    Sentinel,
    Cluster,
}

/// Whether the scheme means TLS, and the arrangement.
fn arrangement(scheme: &str) -> Option<(bool, Arrangement)> {
    Some(match scheme {
        "redis" => (false, Arrangement::Standalone),
        "rediss" => (true, Arrangement::Standalone),
        "redis-sentinel" => (false, Arrangement::Sentinel),
        "rediss-sentinel" => (true, Arrangement::Sentinel),
        "redis-cluster" => (false, Arrangement::Cluster),
        "rediss-cluster" => (true, Arrangement::Cluster),
        _ => return None,
    })
}

fn credentials(text: &str) -> Result<(Option<String>, Option<Secret>), String> {
    // What would confuse those who hide passwords in logs.
    if text.contains(|c: char| c.is_whitespace() || matches!(c, ',' | '"' | '\'' | '@')) {
        return Err("has a character in its user or password that must be percent-encoded, as in `%2C` for a comma \
                    and `%40` for `@`"
            .to_owned());
    }
    let (user, password) = text.split_once(':').map_or((text, None), |(user, password)| (user, Some(password)));
    let user = decode(user)?;
    let password = password.map(decode).transpose()?.filter(|password| !password.is_empty()).map(Secret::new);
    Ok(((!user.is_empty()).then_some(user), password))
}

fn node(text: &str, port_default: u16) -> Result<RedisNode, String> {
    let (host, port) = match text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err("names no server: write for example `redis://localhost:6379`".to_owned());
    }
    let port = match port {
        None => port_default,
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
            format!(
                "has a port for `{host}` that is not a number from 1 to 65535 (a `/`, `?`, `:` or `@` in a password must \
                 be percent-encoded, as in `%2F`)"
            )
        })?,
    };
    Ok(RedisNode { host: host.to_owned(), port })
}

fn database(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| "has a database that is not a number: write for example `redis://localhost:6379/0`".to_owned())
}

#[derive(Default)]
struct Options {
    db: Option<u32>,
    ca: Option<PathBuf>,
    allow_eviction: bool,
    sentinel_auth: bool,
}

impl Options {
    fn parse(query: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = decode(value)?;
            match name {
                "db" => options.db = Some(database(&value)?),
                "ca" if value.is_empty() => return Err("has an empty `ca`: name a PEM file".to_owned()),
                "ca" => options.ca = Some(PathBuf::from(value)),
                "allow_eviction" => options.allow_eviction = truth(name, &value)?,
                "sentinel_auth" => options.sentinel_auth = truth(name, &value)?,
                _ => {
                    return Err(
                        "has an option that is none of `ca`, `db`, `allow_eviction`, `sentinel_auth`".to_owned()
                    );
                }
            }
        }
        Ok(options)
    }
}

fn truth(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("has `{name}` neither `true` nor `false`")),
    }
}

/// Resolves `%XX`.
fn decode(text: &str) -> Result<String, String> {
    let broken = || "has a `%` that is not followed by two hexadecimal digits of UTF-8: write `%25` for `%`".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(broken)?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(broken());
            }
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| broken())?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> RedisLocation {
        RedisLocation::parse(text).unwrap()
    }

    #[test]
    fn every_form_is_read() {
        let plain = parse("redis://localhost");
        assert_eq!((plain.to_string(), plain.tls, plain.db), ("redis://localhost:6379/0".to_owned(), false, 0));
        let full = parse("rediss://ana:p%40ss%2Fword@[::1]:7000/3?ca=/etc/ca.pem&allow_eviction=true");
        assert_eq!(full.to_string(), "rediss://[::1]:7000/3");
        assert_eq!(full.username.as_deref(), Some("ana"));
        assert_eq!(full.password.as_ref().map(Secret::expose), Some("p@ss/word"));
        assert_eq!(full.ca, Some(PathBuf::from("/etc/ca.pem")));
        assert!(full.tls && full.allow_eviction);
        let sentinel = parse("redis-sentinel://:pw@a,b:26380/features?db=2&sentinel_auth=true");
        assert_eq!(sentinel.to_string(), "redis-sentinel://a:26379,b:26380/features?db=2");
        assert_eq!((sentinel.username.as_deref(), sentinel.sentinel_auth), (None, true));
        let cluster = parse("rediss-cluster://a:1,b:2,c:3");
        assert_eq!((cluster.topology.clone(), cluster.nodes.len()), (RedisTopology::Cluster, 3));
        assert_eq!(cluster.to_string(), "rediss-cluster://a:1,b:2,c:3");
    }

    #[test]
    fn a_password_is_never_shown() {
        let location = parse("redis://ana:hunter2@localhost");
        assert!(!format!("{location} {location:?}").contains("hunter2"));
        for bad in
            ["redis://ana:hunt/er2@localhost", "redis://a:hunt,er2@h", "redis://a:hunter2@", "redis://a:hunter2%@h"]
        {
            let error = RedisLocation::parse(bad).unwrap_err();
            assert!(!error.contains("er2"), "{error}");
        }
    }

    #[test]
    fn mistakes_are_answered_with_what_to_write() {
        let cases = [
            ("localhost:6379", "is not a URL"),
            ("http://localhost", "has a scheme that is none of"),
            ("redis://", "names no server"),
            ("redis://a,b", "redis-cluster://"),
            ("redis://a:0", "not a number from 1 to 65535"),
            ("redis://a/features", "has a database that is not a number"),
            ("redis://a/1?db=2", "twice"),
            ("redis://a/1/2", "more than one part"),
            ("redis-sentinel://a:1", "which service"),
            ("redis-cluster://a/1", "only database 0"),
            ("redis://a?sentinel_auth=true", "no sentinels"),
            ("redis://a?ca=x", "begin with `rediss`"),
            ("redis://a?timeout=3", "an option that is none of"),
            ("redis://a?allow_eviction=yes", "neither `true` nor `false`"),
            ("redis://%zz@a", "two hexadecimal digits"),
        ];
        for (text, expected) in cases {
            let error = RedisLocation::parse(text).unwrap_err();
            assert!(error.contains(expected), "`{text}`: {error}");
        }
    }
}
