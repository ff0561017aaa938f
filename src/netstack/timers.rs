//! One deadline for each flow, in a binary heap with positions.
//!
//! Most changes move a deadline further away (each acknowledgement does): that only notes the new time, and the heap
//! learns of it when the old one comes up. So setting is free on the data path, the next wake-up is known exactly, and
//! an idle stack has none.

use crate::FlowId;

const ABSENT: u32 = 0;

#[derive(Debug)]
pub(crate) struct Timers {
    heap: Vec<u32>,
    /// Position in the heap + 1, by flow; [`ABSENT`] when not armed.
    position: Vec<u32>,
    /// What the heap is ordered by.
    key: Vec<u64>,
    /// When the flow really wants to be called; never before `key`.
    wanted: Vec<u64>,
}

impl Timers {
    pub fn new(flows: u32) -> Self {
        let flows = flows as usize;
        Timers {
            heap: Vec::with_capacity(flows),
            position: vec![ABSENT; flows],
            key: vec![0; flows],
            wanted: vec![0; flows],
        }
    }

    pub fn set(&mut self, id: FlowId, at_us: u64) {
        let flow = id.0 as usize;
        self.wanted[flow] = at_us;
        if self.position[flow] == ABSENT {
            self.key[flow] = at_us;
            self.heap.push(id.0);
            self.position[flow] = self.heap.len() as u32;
            self.sift_up(self.heap.len() - 1);
        } else if at_us < self.key[flow] {
            self.key[flow] = at_us;
            self.sift_up(self.position[flow] as usize - 1);
        }
    }

    /// Sets a deadline unless an earlier one is set.
    pub fn set_earlier(&mut self, id: FlowId, at_us: u64) {
        let flow = id.0 as usize;
        if self.position[flow] == ABSENT || at_us < self.wanted[flow] {
            self.set(id, at_us);
        }
    }

    pub fn clear(&mut self, id: FlowId) {
        let position = self.position[id.0 as usize];
        if position == ABSENT {
            return;
        }
        let at = position as usize - 1;
        let last = self.heap.len() - 1;
        self.swap(at, last);
        self.heap.pop();
        self.position[id.0 as usize] = ABSENT;
        if at < self.heap.len() {
            self.sift_up(at);
            self.sift_down(at);
        }
    }

    /// When the next deadline may come up.
    pub fn next(&self) -> Option<u64> {
        self.heap.first().map(|flow| self.key[*flow as usize])
    }

    /// Takes a flow whose deadline has passed.
    pub fn pop(&mut self, now_us: u64) -> Option<FlowId> {
        loop {
            let flow = *self.heap.first()? as usize;
            if self.key[flow] > now_us {
                return None;
            }
            if self.wanted[flow] <= now_us {
                let id = FlowId(flow as u32);
                self.clear(id);
                return Some(id);
            }
            self.key[flow] = self.wanted[flow];
            self.sift_down(0);
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        self.heap.swap(one, other);
        self.position[self.heap[one] as usize] = one as u32 + 1;
        self.position[self.heap[other] as usize] = other as u32 + 1;
    }

    fn key_at(&self, at: usize) -> u64 {
        self.key[self.heap[at] as usize]
    }

    fn sift_up(&mut self, mut at: usize) {
        while at > 0 && self.key_at(at) < self.key_at((at - 1) / 2) {
            self.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn sift_down(&mut self, mut at: usize) {
        loop {
            let smallest = [2 * at + 1, 2 * at + 2]
                .into_iter()
                .filter(|child| *child < self.heap.len())
                .min_by_key(|child| self.key_at(*child));
            match smallest {
                Some(child) if self.key_at(child) < self.key_at(at) => {
                    self.swap(at, child);
                    at = child;
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_deadline_comes_up_once_and_in_time(
            operations in proptest::collection::vec((0_u32..8, 0_u64..100, any::<bool>()), 0..200)
        ) {
            let mut timers = Timers::new(8);
            let mut model = [None; 8];
            for (now, (flow, delay, arm)) in operations.into_iter().enumerate() {
                let now = now as u64;
                if arm {
                    timers.set(FlowId(flow), now + delay);
                    model[flow as usize] = Some(now + delay);
                } else {
                    timers.clear(FlowId(flow));
                    model[flow as usize] = None;
                }
                while let Some(id) = timers.pop(now) {
                    prop_assert!(model[id.0 as usize].take().is_some_and(|at| at <= now));
                }
                prop_assert!(model.iter().flatten().all(|at| *at > now));
                prop_assert!(model.iter().flatten().min().is_none_or(|at| timers.next().is_some_and(|next| next <= *at)));
            }
        }
    }
}
