//! A small pool for bytes that a host socket did not take at once.
//!
//! The free room of a kernel send buffer cannot be known exactly, so a window may promise a little too much. What does
//! not fit waits here, at most [`PER_FLOW`] bytes for each flow, and is acknowledged when the socket takes it. When the
//! pool is empty the segment is dropped and the container sends it again. What came before its turn waits here too.

/// Bytes in a block.
const BLOCK: usize = 64 << 10;
/// Blocks in the pool.
const BLOCKS: usize = 64;
/// Blocks that one flow may hold.
const BLOCKS_PER_FLOW: usize = 4;
/// The most that one flow may leave here.
pub(crate) const PER_FLOW: u32 = (BLOCK * BLOCKS_PER_FLOW) as u32;

/// One flow's bytes, in order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Queue {
    blocks: [u8; BLOCKS_PER_FLOW],
    count: u8,
    /// Where the bytes begin in the first block.
    start: u32,
    len: u32,
}

impl Queue {
    pub fn len(&self) -> u32 {
        self.len
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    bytes: Vec<u8>,
    free: Vec<u8>,
}

impl Pool {
    pub fn new() -> Self {
        Pool { bytes: vec![0; BLOCK * BLOCKS], free: (0..BLOCKS as u8).rev().collect() }
    }

    /// Whether windows should promise less.
    pub fn is_scarce(&self) -> bool {
        self.free.len() < BLOCKS / 2
    }

    /// Appends as much as there is room for and returns how much that was.
    pub fn push(&mut self, queue: &mut Queue, mut bytes: &[u8]) -> usize {
        let offered = bytes.len();
        while !bytes.is_empty() {
            let end = (queue.start + queue.len) as usize;
            if end == usize::from(queue.count) * BLOCK {
                if usize::from(queue.count) == BLOCKS_PER_FLOW {
                    break;
                }
                let Some(block) = self.free.pop() else { break };
                queue.blocks[usize::from(queue.count)] = block;
                queue.count += 1;
            }
            let at = end % BLOCK;
            let count = bytes.len().min(BLOCK - at);
            let base = usize::from(queue.blocks[end / BLOCK]) * BLOCK + at;
            self.bytes[base..base + count].copy_from_slice(&bytes[..count]);
            queue.len += count as u32;
            bytes = &bytes[count..];
        }
        offered - bytes.len()
    }

    /// The first bytes that lie together; empty when there are none.
    pub fn front(&self, queue: &Queue) -> &[u8] {
        if queue.len == 0 {
            return &[];
        }
        let count = (queue.len as usize).min(BLOCK - queue.start as usize);
        let base = usize::from(queue.blocks[0]) * BLOCK + queue.start as usize;
        &self.bytes[base..base + count]
    }

    /// Drops `count` bytes that [`front`](Self::front) has shown.
    pub fn pop(&mut self, queue: &mut Queue, count: usize) {
        queue.start += count as u32;
        queue.len -= count as u32;
        if queue.len == 0 {
            self.clear(queue);
        } else if queue.start as usize == BLOCK {
            self.free.push(queue.blocks[0]);
            queue.blocks.rotate_left(1);
            queue.count -= 1;
            queue.start = 0;
        }
    }

    /// Drops the first `count` bytes, of which there are as many.
    pub fn skip(&mut self, queue: &mut Queue, count: u32) {
        let mut left = count as usize;
        while left > 0 && queue.len > 0 {
            let part = self.front(queue).len().min(left);
            self.pop(queue, part);
            left -= part;
        }
    }

    /// Gives everything back.
    pub fn clear(&mut self, queue: &mut Queue) {
        self.free.extend_from_slice(&queue.blocks[..usize::from(queue.count)]);
        *queue = Queue::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_blocks_come_back() {
        let mut pool = Pool::new();
        let mut queue = Queue::default();
        let input: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let taken = pool.push(&mut queue, &input);
        assert_eq!(taken as u32, PER_FLOW);
        let mut output = Vec::new();
        while queue.len() > 0 {
            let front = pool.front(&queue);
            let count = front.len().min(50_001);
            output.extend_from_slice(&front[..count]);
            pool.pop(&mut queue, count);
        }
        assert!(output == input[..taken]);
        assert_eq!(pool.free.len(), BLOCKS);
    }
}
