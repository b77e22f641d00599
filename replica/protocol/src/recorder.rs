//! How every crate counts, from the first day, without knowing who exports the figures.

/// Takes figures from the hot paths. Implementations must be cheap and must never block.
///
/// Names are static and dotted, the crate first: `downstairs.log.sync`. Units are in the method.
pub trait Recorder: Send + Sync {
    /// Adds `n` to a counter.
    fn count(&self, name: &'static str, n: u64);
    /// Sets a gauge (a queue's depth, bytes in a cache).
    fn gauge(&self, name: &'static str, value: u64);
    /// One observation of a stage's latency, in nanoseconds.
    fn time(&self, name: &'static str, nanos: u64);
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullRecorder;

impl Recorder for NullRecorder {
    fn count(&self, _: &'static str, _: u64) {}
    fn gauge(&self, _: &'static str, _: u64) {}
    fn time(&self, _: &'static str, _: u64) {}
}
