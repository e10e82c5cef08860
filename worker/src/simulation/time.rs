//! Virtual time. Each simulation owns a thread; whoever sleeps on that thread sleeps in the simulation's time, which moves
//! only when nobody has anything left to do, and then to the next moment that somebody waits for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;

thread_local! {
    static HERE: RefCell<Option<Arc<Time>>> = const { RefCell::new(None) };
}

/// Virtual time, from 0.
#[derive(Debug, Default)]
pub(crate) struct Time {
    state: Mutex<State>,
    /// Nobody has anything left to do, and nobody waits for a moment.
    stuck: Notify,
}

#[derive(Debug, Default)]
struct State {
    now: Duration,
    /// By moment, then in the order of asking.
    sleepers: BTreeMap<(Duration, u64), Waker>,
    asked: u64,
}

impl Time {
    /// Runs `simulation` on a runtime of its own in this thread, in virtual time.
    pub(crate) fn run<F: Future>(simulation: impl FnOnce(Arc<Self>) -> F) -> F::Output {
        let time = Arc::new(Self::default());
        let clock = Arc::clone(&time);
        let runtime = tokio::runtime::Builder::new_current_thread()
            // Called when there is nothing left to do.
            .on_thread_park(move || clock.advance())
            .build()
            .unwrap();
        HERE.set(Some(Arc::clone(&time)));
        let done = runtime.block_on(simulation(time));
        drop(runtime);
        HERE.set(None);
        done
    }

    pub(crate) fn now(&self) -> Duration {
        self.state.lock().unwrap().now
    }

    fn advance(&self) {
        let next = {
            let mut state = self.state.lock().unwrap();
            state.sleepers.pop_first().map(|((moment, _), waker)| {
                state.now = state.now.max(moment);
                waker
            })
        };
        // Outside of the lock: whoever is woken may ask at once.
        match next {
            Some(waker) => waker.wake(),
            None => self.stuck.notify_one(),
        }
    }

    /// Comes back when everybody waits for something that will not happen.
    pub(crate) async fn stuck(&self) {
        self.stuck.notified().await;
    }

    pub(crate) fn sleep(self: &Arc<Self>, pause: Duration) -> Sleep {
        Sleep { time: Arc::clone(self), until: self.now().saturating_add(pause), place: None }
    }
}

/// See [`Time::sleep`].
#[derive(Debug)]
pub(crate) struct Sleep {
    time: Arc<Time>,
    until: Duration,
    place: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut state = this.time.state.lock().unwrap();
        if state.now >= this.until {
            return Poll::Ready(());
        }
        let place = *this.place.get_or_insert_with(|| {
            state.asked += 1;
            state.asked
        });
        state.sleepers.insert((this.until, place), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.time.state.lock().unwrap().sleepers.remove(&(self.until, place));
        }
    }
}

fn here() -> Option<Arc<Time>> {
    HERE.with_borrow(Clone::clone)
}

/// As [`tokio::time::sleep`].
pub(crate) async fn sleep(pause: Duration) {
    match here() {
        Some(time) => time.sleep(pause).await,
        None => tokio::time::sleep(pause).await,
    }
}

/// It took too long.
#[derive(Debug, thiserror::Error)]
#[error("deadline has elapsed")]
pub(crate) struct Elapsed;

/// As [`tokio::time::timeout`].
pub(crate) async fn timeout<F: Future>(limit: Duration, work: F) -> Result<F::Output, Elapsed> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = sleep(limit) => Err(Elapsed),
    }
}

/// As [`tokio::time::interval`].
pub(crate) fn interval(period: Duration) -> Interval {
    match here() {
        Some(time) => Interval::Virtual { next: time.now(), period, time },
        None => Interval::Real(tokio::time::interval(period)),
    }
}

/// See [`interval`].
#[derive(Debug)]
pub(crate) enum Interval {
    Real(tokio::time::Interval),
    Virtual { time: Arc<Time>, next: Duration, period: Duration },
}

impl Interval {
    pub(crate) async fn tick(&mut self) {
        match self {
            Self::Real(interval) => drop(interval.tick().await),
            Self::Virtual { time, next, period } => {
                let pause = next.saturating_sub(time.now());
                time.sleep(pause).await;
                *next += *period;
            }
        }
    }
}
