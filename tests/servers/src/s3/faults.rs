//! What goes wrong, with which requests, how often.

use std::time::Duration;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing is done, and the answer is this status: 503 says slow down, 403 that credentials have run out, 409 that
    /// somebody else is writing.
    Refuse(u16),
    /// It is done, and the answer is this status.
    ApplyThenRefuse(u16),
    /// Nothing is done, and the connection is cut.
    Cut,
    /// It is done, and the connection is cut before the answer.
    ApplyThenCut,
    /// Nothing is done or said for so long; then the connection is cut.
    Hang(Duration),
    /// It is done, nothing is said for so long; then the connection is cut.
    ApplyThenHang(Duration),
    /// All is right, but so much later.
    Delay(Duration),
    /// The connection is cut after so many bytes of the answer's body.
    CutBody(usize),
    /// The answer's body comes in pieces of so many bytes, with a pause after each.
    SlowBody {
        /// Bytes in a piece.
        bytes: usize,
        /// After each piece.
        pause: Duration,
    },
    /// One byte of the answer's body is another one: the one at this place, counted round the body.
    FlipByte(usize),
    /// The answer's body has at most so many bytes, and its length says so.
    Truncate(usize),
}

/// A [`Mode`] for some of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    mode: Mode,
    method: Option<String>,
    writes_only: bool,
    target: String,
    skip: u64,
    every: u64,
    times: u64,
    strikes: u64,
}

impl Fault {
    /// For every request, until it is taken away.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            method: None,
            writes_only: false,
            target: String::new(),
            skip: 0,
            every: 1,
            times: u64::MAX,
            strikes: 0,
        }
    }

    /// Only for requests of this method whose path or query holds `target`.
    #[must_use]
    pub fn on(mut self, method: &str, target: &str) -> Self {
        self.method = Some(method.to_owned());
        target.clone_into(&mut self.target);
        self
    }

    /// Only for requests that change something.
    #[must_use]
    pub fn on_writes(mut self) -> Self {
        self.writes_only = true;
        self
    }

    /// Lets the first `requests` that it is for pass.
    #[must_use]
    pub fn after(mut self, requests: u64) -> Self {
        self.skip = requests;
        self
    }

    /// Strikes the first of every so many requests that it is for: with 2, a client that asks again gets an answer.
    #[must_use]
    pub fn every(mut self, requests: u64) -> Self {
        self.every = requests.max(1);
        self
    }

    /// Strikes so often and no more.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// How often it has struck.
    pub fn strikes(&self) -> u64 {
        self.strikes
    }

    /// What shall go wrong with a request that has come in.
    pub(super) fn strike(&mut self, method: &str, target: &str) -> Option<Mode> {
        if self.method.as_ref().is_some_and(|wanted| wanted != method) || !target.contains(&self.target) {
            return None;
        }
        if self.writes_only && matches!(method, "GET" | "HEAD") {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if self.strikes == self.times {
            return None;
        }
        self.skip = self.every - 1;
        self.strikes += 1;
        Some(self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_what_it_is_for_after_so_many_and_so_often() {
        let mut fault = Fault::new(Mode::Cut).on("PUT", "_delta_log").after(1).times(2);
        let requests = [("PUT", "/b/x"), ("GET", "/b/_delta_log/0"), ("PUT", "/b/_delta_log/0")];
        assert!(requests.iter().all(|(method, target)| fault.strike(method, target).is_none()));
        let struck: Vec<bool> = (0..3).map(|_| fault.strike("PUT", "/b/_delta_log/1").is_some()).collect();
        assert_eq!((struck, fault.strikes()), (vec![true, true, false], 2));
        let mut fault = Fault::new(Mode::Cut).on_writes();
        let struck = ["GET", "HEAD", "PUT", "POST", "DELETE"].map(|method| fault.strike(method, "/b/x").is_some());
        assert_eq!(struck, [false, false, true, true, true]);
        let mut fault = Fault::new(Mode::Cut).every(2);
        let struck: Vec<bool> = (0..4).map(|_| fault.strike("GET", "/b/x").is_some()).collect();
        assert_eq!(struck, [true, false, true, false]);
    }
}
