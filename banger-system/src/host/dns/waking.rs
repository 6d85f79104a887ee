//! Look-ups of sandboxes that sleep: the client gets the address once the guest runs. An earlier answer would lead to an
//! address where nobody is yet.

use std::sync::Arc;

use banger_domain::{dns::question::Answer, id::VmId, net::subnet::Subnet};
use hickory_server::proto::op::ResponseCode;

use super::{message::Question, quota::Permit};
use crate::ports::wake::{Cause, Wakes, Woken};

/// A question whose answer waits for a sandbox.
pub(super) struct Waking {
    pub(super) vm: VmId,
    pub(super) question: Box<Question>,
    /// The answer, once it runs.
    pub(super) answer: Answer,
    pub(super) subnet: Subnet,
    pub(super) wakes: Arc<Wakes>,
    /// The client's share, held until the question is answered.
    pub(super) permit: Permit,
}

impl Waking {
    /// Waits for the sandbox, and returns the answer: its address, or a failure if it does not wake.
    pub(super) async fn run(self) -> Option<Vec<u8>> {
        let Self { vm, question, answer, subnet, wakes, permit: _held } = self;
        match wakes.wake(vm, Cause::Name).await {
            Woken::Yes => question.authoritative(subnet, &answer),
            Woken::No => question.with_code(ResponseCode::ServFail),
        }
    }
}
