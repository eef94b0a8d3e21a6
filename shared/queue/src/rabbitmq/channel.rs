//! A channel that is closed when it is let go of. lapin keeps a handle of its own while it waits for an answer, so a
//! channel abandoned in the middle of a question, a subscription to a queue that hangs for one, would stay open; and the
//! answer, should it come after all, would bring deliveries that nobody reads.

use lapin::Channel;
use std::ops::Deref;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// An open channel and the end of its connection.
#[derive(Debug)]
pub(super) struct OwnChannel {
    channel: Channel,
    ended: CancellationToken,
}

impl OwnChannel {
    pub(super) fn new(channel: Channel, ended: CancellationToken) -> Self {
        Self { channel, ended }
    }
}

impl Deref for OwnChannel {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for OwnChannel {
    fn drop(&mut self) {
        if !self.channel.status().connected() || self.ended.is_cancelled() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        let (channel, ended) = (self.channel.clone(), self.ended.clone());
        runtime.spawn(async move {
            // The broker may answer as late as it likes: its connection ends the wait.
            tokio::select! {
                _ = channel.close(200, "let go of".into()) => {}
                () = ended.cancelled() => {}
            }
        });
    }
}
