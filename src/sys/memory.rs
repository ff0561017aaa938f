//! The binary's allocator: dlmalloc for small pieces, maps of their own for large ones.
//!
//! musl's allocator maps and unmaps pages for every few small pieces, which was half of the time of a short command;
//! dlmalloc keeps what it has. A large piece is mapped apart: its pages cost nothing until they are touched (buffers are
//! made for the most that may come), are zero without being written, move without being copied, and go back at once.

use std::alloc::{GlobalAlloc, Layout};

use dlmalloc::GlobalDlmalloc;

/// From this size on a piece is a map of its own.
const LARGE: usize = 128 << 10;
/// The largest alignment that every map has.
const PAGE: usize = 4096;

/// To be the `#[global_allocator]`.
#[derive(Debug)]
pub struct Allocator;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

/// Lets go of the pages of the program's code and constants: what runs on reads its own again from the page cache. The
/// kernel maps sixteen at a time around each that is used, and more where the page cache has larger pages, so a process
/// that has been through much of the program counts megabytes of code which it does not use again.
pub fn release_code() {
    extern "C" fn each(object: *mut libc::dl_phdr_info, _: libc::size_t, _: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the C library hands a description that lives as long as this call, with so many headers.
        let (base, headers) = unsafe {
            let object = &*object;
            (object.dlpi_addr, std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)))
        };
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
        {
            let start = (base + header.p_vaddr) as usize & !(PAGE - 1);
            let length = (base + header.p_vaddr + header.p_memsz) as usize - start;
            // SAFETY: the map of a file that nothing is ever written to: what is let go of comes back as it was. An error
            // (a page size that is not ours) leaves all as it is.
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
        }
        // The first object is the program itself.
        1
    }
    // SAFETY: `each` has the signature that is wanted and does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(each), std::ptr::null_mut()) };
}

/// A new map of zeroes; null when there is no memory.
fn map(size: usize) -> *mut u8 {
    let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: an anonymous map at an address that the kernel chooses touches no memory that is in use.
    pointer(unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, -1, 0) })
}

fn pointer(mapped: *mut libc::c_void) -> *mut u8 {
    if mapped == libc::MAP_FAILED { std::ptr::null_mut() } else { mapped.cast() }
}

// SAFETY: whether a piece is a map or dlmalloc's follows from its layout, which every call is given as it was allocated;
// each kind is only handed to what made it. Both give memory of that size and alignment that nobody else has, or null.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's promises are those that it asks for.
        unsafe { GlobalDlmalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: as above.
        unsafe { GlobalDlmalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: the whole of a map that `alloc` or `realloc` made and that the caller uses no more.
            unsafe { libc::munmap(piece.cast(), layout.size()) };
            return;
        }
        // SAFETY: as above; by its layout the piece is dlmalloc's.
        unsafe { GlobalDlmalloc.dealloc(piece, layout) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the new size, rounded up to the alignment, is none too large for a layout.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        match (is_large(layout), is_large(new)) {
            (true, true) => {
                // SAFETY: the whole of a map of ours; where it moves, the kernel takes the old addresses away.
                let moved = unsafe { libc::mremap(piece.cast(), layout.size(), new_size, libc::MREMAP_MAYMOVE) };
                pointer(moved)
            }
            // SAFETY: as above; both layouts are dlmalloc's.
            (false, false) => unsafe { GlobalDlmalloc.realloc(piece, layout, new_size) },
            // SAFETY: the new piece has room for what is copied, and shares nothing with the old one, which is given
            // back by its own layout only when there is a new one.
            _ => unsafe {
                let moved = self.alloc(new);
                if !moved.is_null() {
                    std::ptr::copy_nonoverlapping(piece, moved, layout.size().min(new_size));
                    self.dealloc(piece, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_move_along_and_large_pieces_are_zero() {
        let sizes = [16, 4096, LARGE - 1, LARGE, LARGE + 1, 8 * LARGE, LARGE - 1, 3 * LARGE, 16];
        let layout = |size| Layout::from_size_align(size, 16).expect("a small alignment");
        // SAFETY: each piece is used within its size, reallocated with the layout that it has, and given back once.
        unsafe {
            let mut piece = Allocator.alloc_zeroed(layout(sizes[0]));
            let mut size = sizes[0];
            piece.write(7);
            for next in sizes {
                piece = Allocator.realloc(piece, layout(size), next);
                assert!(!piece.is_null());
                assert_eq!((piece.read(), piece as usize % 16), (7, 0), "{size} to {next}");
                piece.add(next - 1).write(9);
                size = next;
            }
            Allocator.dealloc(piece, layout(size));
            let zeroes = Allocator.alloc_zeroed(layout(64 * LARGE));
            assert!((0..64).all(|at| zeroes.add(at * LARGE).read() == 0));
            Allocator.dealloc(zeroes, layout(64 * LARGE));
        }
    }
}
