//! How long to wait before trying again.

use std::hash::Hasher;
use std::time::Duration;

use crate::ids::RunId;
use crate::model::Retries;
use crate::run::TaskKind;

/// No delay is longer.
pub const DELAY_MAX: Duration = Duration::from_secs(3600);

/// The delay before the attempt that follows attempt number `attempt` (from 1): the backoff, doubled with each attempt,
/// at most an hour, and less up to a fifth of it, so that tasks that failed together do not come back together. The same
/// task and attempt always get the same delay. `None`: it may not be tried again.
pub fn delay(retries: &Retries, run: RunId, task: &TaskKind, attempt: u32) -> Option<Duration> {
    if attempt > retries.max {
        return None;
    }
    let doublings = attempt.saturating_sub(1).min(31);
    let full = retries.backoff.saturating_mul(1 << doublings).min(DELAY_MAX);
    Some(full.mul_f64(1.0 - 0.2 * fraction(run, task, attempt)))
}

/// A number in [0, 1) that depends on nothing but the arguments: FNV-1a, since the standard hasher may change.
fn fraction(run: RunId, task: &TaskKind, attempt: u32) -> f64 {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(format!("{run}/{task}/{attempt}").as_bytes());
    // The low bits of FNV are the better mixed ones; a million steps are fine enough.
    (hasher.finish() % 1_000_003) as f64 / 1_000_003.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(max: u32, backoff: Duration, run: RunId) -> Vec<Option<Duration>> {
        (1..=max + 1).map(|attempt| delay(&Retries { max, backoff }, run, &TaskKind::Pin, attempt)).collect()
    }

    #[test]
    fn delays_double_up_to_an_hour_and_end_with_the_retries() {
        let found = delays(12, Duration::from_secs(30), RunId::generate());
        assert_eq!(found.len(), 13);
        assert_eq!(found[12], None);
        for (index, delay) in found[..12].iter().enumerate() {
            let full = (30_u64 << index).min(3600) as f64;
            let share = delay.unwrap().as_secs_f64() / full;
            assert!((0.8..=1.0).contains(&share), "delay {index} is {share} of {full} s");
        }
    }

    #[test]
    fn no_retries_means_none() {
        assert_eq!(delays(0, Duration::from_secs(30), RunId::generate()), [None]);
    }

    #[test]
    fn the_same_attempt_waits_the_same_and_different_runs_spread_out() {
        let run = RunId::generate();
        assert_eq!(delays(5, Duration::from_secs(60), run), delays(5, Duration::from_secs(60), run));
        let spread: std::collections::BTreeSet<_> =
            (0..100).map(|_| delays(1, Duration::from_secs(1000), RunId::generate())[0]).collect();
        assert!(spread.len() > 90, "only {} different delays", spread.len());
    }

    #[test]
    fn absurd_settings_do_not_overflow() {
        let delay =
            delay(&Retries { max: u32::MAX, backoff: Duration::MAX }, RunId::generate(), &TaskKind::Publish, u32::MAX);
        assert!(delay.unwrap() <= DELAY_MAX);
    }
}
