//! Work in the background at a bounded rate.

use trivet_protocol::Now;

/// Bytes that may be worked on now. Below zero by what was begun beyond it, which is made up for
/// before the next piece is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Allowance {
    bytes: i64,
    reckoned: Now,
}

impl Allowance {
    /// Nothing earned yet.
    pub(super) fn from(now: Now) -> Allowance {
        Allowance {
            bytes: 0,
            reckoned: now,
        }
    }

    /// Time has passed at `rate` bytes per second. At most 100 ms worth is saved up, and never
    /// less than one `piece`.
    pub(super) fn earn(&mut self, now: Now, rate: u64, piece: u64) {
        let micros = now.since(self.reckoned).as_micros().min(1_000_000) as u64;
        let earned = rate.saturating_mul(micros) / 1_000_000;
        if earned > 0 {
            let most = i64::try_from((rate / 10).max(piece)).unwrap_or(i64::MAX);
            self.bytes = self.bytes.saturating_add_unsigned(earned).min(most);
            self.reckoned = now;
        }
    }

    /// So much is worked on.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub_unsigned(bytes);
    }

    /// Whether anything may be begun.
    pub(super) fn is_left(self) -> bool {
        self.bytes > 0
    }
}
