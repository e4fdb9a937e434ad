//! What comes from elements in other threads, and the watch over them.

use std::time::Duration;

use crate::arbiter::crossing::Exit;
use crate::arbiter::{Answer, AnswerTo, HANGS_AFTER_S, Parked, Pulse, Remote, Request};

use super::dispatch::Queued;
use super::{Armor, Place, fail_stop};

impl Armor {
    /// Hears elements in other threads as long as this thread runs.
    pub(crate) fn hear(&self, mut answers: Exit<Answer>) {
        let armor = self.this.clone();
        self.spawner.spawn(Box::pin(async move {
            loop {
                let answer = answers.next().await;
                let Some(armor) = armor.upgrade() else { return };
                armor.answered(answer);
            }
        }));
    }

    pub(super) fn answered(&self, Answer { index, requests, to }: Answer) {
        let Place::Away(remote) = &self.places[index] else { return };
        self.carry_out_requests(remote, requests);
        match to {
            AnswerTo::Handle(parked) => {
                let Parked { visit, operation, next, bytes } = *parked;
                remote.handled(bytes);
                self.proceed(visit, Some((operation, next)));
            }
            AnswerTo::Stop => {
                remote.stopped();
                self.stop_before(index);
            }
            AnswerTo::Itself => {}
        }
        self.drain();
    }

    pub(super) fn carry_out_requests(&self, remote: &Remote, requests: Vec<Request>) {
        for request in requests {
            match request {
                Request::Send(message) => self.send(message),
                Request::SendReliable(message) => self.send_reliable(message),
                Request::Received(frame) => self.enqueue(Queued::Frame(frame)),
                Request::Event(event) => self.report(event),
                Request::Complaint(event) => self.complain(event),
                Request::Captured(state) => self.captured(remote.name(), state),
                Request::Shutdown => self.shutdown(),
            }
        }
    }

    /// Takes the ARMOR down when an element in another thread hangs: the heartbeats that this thread answers would hide it.
    pub(super) fn watch(&self, index: usize, remote: &Remote) {
        if !remote.watch() {
            return;
        }
        let mut answered = remote.answered();
        let mut silent_s = 0;
        let armor = self.this.clone();
        self.spawner.spawn(Box::pin(async move {
            loop {
                // Counted in seconds, so that time for which the whole process was stopped is no silence.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let Some(armor) = armor.upgrade() else { return };
                let Place::Away(remote) = &armor.places[index] else { return };
                match remote.pulse(answered) {
                    Pulse::Idle => return,
                    Pulse::Works(by_now) => (answered, silent_s) = (by_now, 0),
                    Pulse::Silent => silent_s += 1,
                }
                if silent_s >= HANGS_AFTER_S {
                    let reason = format!("it hangs: for {HANGS_AFTER_S} s it has not finished what it was given");
                    fail_stop(&armor.setup.name, remote.name(), &reason);
                }
            }
        }));
    }

    pub(super) fn thread_is_gone(&self, remote: &Remote) -> ! {
        fail_stop(&self.setup.name, remote.name(), "its thread has ended")
    }
}
