//! Whether a loop still turns: it says so each time, and a health endpoint asks how long ago that was.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The pulse of one loop. Clones are the same pulse.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// The machine's monotonic clock: nothing here has to do with project time.
    born: Instant,
    last: Arc<AtomicU64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { born: Instant::now(), last: Arc::default() }
    }
}

impl Pulse {
    /// The loop turned.
    pub fn beat(&self) {
        let since = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }

    /// How long ago the loop turned last, or the pulse was made; to the millisecond.
    pub fn age(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_makes_a_pulse_young_again() {
        let pulse = Pulse::default();
        std::thread::sleep(Duration::from_millis(30));
        assert!(pulse.age() >= Duration::from_millis(30));
        let before = Instant::now();
        pulse.clone().beat();
        // A beat is noted to the millisecond.
        assert!(pulse.age() <= before.elapsed() + Duration::from_millis(1));
    }
}
