//! Counts what the heap is asked for.
#![expect(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

#[global_allocator]
static HEAP: Counting = Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);
static HELD: AtomicI64 = AtomicI64::new(0);
static MOST: AtomicI64 = AtomicI64::new(0);

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heap {
    pub(crate) allocations: u64,
    /// Whether or not they were given back.
    pub(crate) bytes: u64,
    /// Those that were not given back; fewer than none where older ones were.
    pub(crate) held: i64,
    /// The most that were held at a time.
    pub(crate) most: i64,
}

/// What `work` asks for, on all threads.
pub(crate) fn count(work: impl FnOnce()) -> Heap {
    ALLOCATIONS.store(0, Ordering::Relaxed);
    BYTES.store(0, Ordering::Relaxed);
    HELD.store(0, Ordering::Relaxed);
    MOST.store(0, Ordering::Relaxed);
    COUNTS.store(true, Ordering::Relaxed);
    work();
    COUNTS.store(false, Ordering::Relaxed);
    Heap {
        allocations: ALLOCATIONS.load(Ordering::Relaxed),
        bytes: BYTES.load(Ordering::Relaxed),
        held: HELD.load(Ordering::Relaxed),
        most: MOST.load(Ordering::Relaxed),
    }
}

/// Does what is not to be counted.
pub(crate) fn uncounted<T>(work: impl FnOnce() -> T) -> T {
    let counts = COUNTS.swap(false, Ordering::Relaxed);
    let done = work();
    COUNTS.store(counts, Ordering::Relaxed);
    done
}

struct Counting;

impl Counting {
    /// An allocation of so many bytes, in the place of so many others.
    fn note(bytes: usize, before: usize) {
        // Nothing is counted while the time is measured: a load that is never contended is all that is left.
        if COUNTS.load(Ordering::Relaxed) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
            BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
            // No block is larger than half of the address space.
            let more = bytes.cast_signed().wrapping_sub(before.cast_signed()) as i64;
            let held = HELD.fetch_add(more, Ordering::Relaxed) + more;
            MOST.fetch_max(held, Ordering::Relaxed);
        }
    }

    fn note_end(bytes: usize) {
        if COUNTS.load(Ordering::Relaxed) {
            HELD.fetch_sub(bytes.cast_signed() as i64, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call goes to the system's allocator with the very arguments it came with; `note` and `note_end` do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::note(layout.size(), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::note(size, layout.size());
        // SAFETY: as above; `block` came from the system's allocator, for `alloc` goes nowhere else.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        Self::note_end(layout.size());
        // SAFETY: as for `realloc`.
        unsafe { System.dealloc(block, layout) }
    }
}
