//! Private servers for tests and benchmarks: each on a free port of the loopback interface, with its files in a folder of
//! its own, gone when the value that stands for it is dropped or its process dies, however it dies.
//!
//! A server that is not installed is an error that names the package; nothing here ever talks to a server that happens
//! to run.

mod moto;
mod postgres;
mod process;
mod redis;
mod s3;
mod s3s_fs;

pub use moto::{MOTO_VARIABLE, Moto};
pub use postgres::Postgres;
pub use process::{Folder, Port, Server, program, user_for_servers};
pub use redis::{Frozen, Redis, RedisCluster, RedisOptions, RedisSentinel};
pub use s3::{Fault, Mode, S3Endpoint, S3Fake, Seen};
pub use s3s_fs::S3sFs;
