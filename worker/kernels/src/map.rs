//! Files mapped into memory, to read.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

/// A file's bytes, read-only. Nobody may cut the file while it is mapped: model files are written under another name
/// and renamed into place, never changed.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is read-only and private; nothing about it is tied to a thread.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps the whole of the file at `path`. Fails as opening it does, or where it is empty or no regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let len = usize::try_from(metadata.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is empty"));
        }
        // SAFETY: a new read-only private mapping at an address that the kernel chooses; checked below.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { start, len })
    }

    /// Gives the memory of a range back; reading it again reads the file again.
    pub fn advise_dont_need(&self, range: Range<usize>) {
        const PAGE: usize = 4096;
        let end = range.end.min(self.len);
        let start = range.start.next_multiple_of(PAGE);
        if start < end {
            // SAFETY: within the mapping; a private read-only file mapping loses nothing. A failure costs memory alone.
            unsafe { libc::madvise(self.start.as_ptr().add(start).cast(), end - start, libc::MADV_DONTNEED) };
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has `len` readable bytes until the drop.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `open` with this length, unmapped once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_also_after_its_memory_was_given_back() {
        let path = std::env::temp_dir().join(format!("penstock-map-{}", std::process::id()));
        let bytes: Vec<u8> = (0..20_000).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = Mapped::open(&path).unwrap();
        assert_eq!(&*map, &bytes[..]);
        map.advise_dont_need(100..20_000);
        assert_eq!(&*map, &bytes[..]);
        std::fs::write(&path, b"").unwrap();
        assert_eq!(Mapped::open(&path).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(Mapped::open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(Mapped::open(Path::new("/")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
