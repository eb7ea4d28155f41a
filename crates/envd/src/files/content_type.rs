//! The media type of a file: by its name or, failing that, by how it begins.

/// For what nothing is known about.
pub const BINARY: &str = "application/octet-stream";

const TEXT: &str = "text/plain; charset=utf-8";

/// How much of a file tells its type.
pub const SNIFF: usize = 512;

/// The type that goes with the name's extension.
pub fn by_name(name: &str) -> Option<&'static str> {
    let (_, extension) = name.rsplit_once('.')?;
    Some(match extension.to_ascii_lowercase().as_str() {
        "avif" => "image/avif",
        "bmp" => "image/bmp",
        "css" => "text/css; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "gif" => "image/gif",
        "gz" => "application/gzip",
        "htm" | "html" => "text/html; charset=utf-8",
        "ico" => "image/vnd.microsoft.icon",
        "jpeg" | "jpg" => "image/jpeg",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "md" => "text/markdown; charset=utf-8",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        "ogg" => "audio/ogg",
        "otf" => "font/otf",
        "pdf" => "application/pdf",
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "tar" => "application/x-tar",
        "ttf" => "font/ttf",
        "txt" | "log" => TEXT,
        "wasm" => "application/wasm",
        "wav" => "audio/x-wav",
        "webm" => "video/webm",
        "webp" => "image/webp",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "xml" => "text/xml; charset=utf-8",
        "zip" => "application/zip",
        _ => return None,
    })
}

/// The type that content beginning like this has: a known mark, text, or binary.
pub fn sniff(start: &[u8]) -> &'static str {
    let start = &start[..start.len().min(SNIFF)];
    const MARKS: [(&[u8], &str); 22] = [
        (b"\xef\xbb\xbf", TEXT),
        (b"\xff\xfe", "text/plain; charset=utf-16le"),
        (b"\xfe\xff", "text/plain; charset=utf-16be"),
        (b"%PDF-", "application/pdf"),
        (b"%!PS-Adobe-", "application/postscript"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff", "image/jpeg"),
        (b"BM", "image/bmp"),
        (b"\0\0\x01\0", "image/x-icon"),
        (b"OggS\0", "application/ogg"),
        (b"MThd\0\0\0\x06", "audio/midi"),
        (b"ID3", "audio/mpeg"),
        (b"\x1a\x45\xdf\xa3", "video/webm"),
        (b"\0asm", "application/wasm"),
        (b"\x1f\x8b\x08", "application/x-gzip"),
        (b"PK\x03\x04", "application/zip"),
        (b"Rar!\x1a\x07", "application/x-rar-compressed"),
        (b"wOFF", "font/woff"),
        (b"wOF2", "font/woff2"),
        (b"\0\x01\0\0", "font/ttf"),
    ];
    if let Some((_, kind)) = MARKS.iter().find(|(mark, _)| start.starts_with(mark)) {
        return kind;
    }
    match (start.get(..4), start.get(8..12)) {
        (Some(b"RIFF"), Some(b"WAVE")) => return "audio/wave",
        (Some(b"RIFF"), Some(b"AVI ")) => return "video/avi",
        (Some(b"RIFF"), Some(b"WEBP")) => return "image/webp",
        _ if start.get(4..8) == Some(b"ftyp") => return "video/mp4",
        _ => {}
    }
    markup(start).unwrap_or(if start.iter().any(|byte| is_binary(*byte)) { BINARY } else { TEXT })
}

/// HTML and XML, which may begin after white space and in either case.
fn markup(start: &[u8]) -> Option<&'static str> {
    let start = start.trim_ascii_start();
    if start.starts_with(b"<?xml") {
        return Some("text/xml; charset=utf-8");
    }
    const TAGS: [&[u8]; 9] = [
        b"<!DOCTYPE HTML",
        b"<HTML",
        b"<HEAD",
        b"<BODY",
        b"<SCRIPT",
        b"<TITLE",
        b"<STYLE",
        b"<TABLE",
        b"<!--",
    ];
    let is_html = TAGS.iter().any(|tag| {
        let begins = start.get(..tag.len()).is_some_and(|head| head.eq_ignore_ascii_case(tag));
        let ends = start.get(tag.len()).is_some_and(|next| matches!(next, b' ' | b'>'));
        begins && (ends || *tag == b"<!--")
    });
    is_html.then_some("text/html; charset=utf-8")
}

/// Control characters that no text has.
fn is_binary(byte: u8) -> bool {
    matches!(byte, 0..=0x08 | 0x0b | 0x0e..=0x1a | 0x1c..=0x1f)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Rules: GET-10
    #[test]
    fn names_tell_the_type() {
        assert_eq!(by_name("a.txt"), Some("text/plain; charset=utf-8"));
        assert_eq!(by_name("archive.tar.GZ"), Some("application/gzip"));
        assert_eq!(by_name("plain"), None);
        assert_eq!(by_name("a.unheard-of"), None);
    }

    // Rules: GET-10
    #[test]
    fn content_tells_the_type() {
        for (start, expected) in [
            (&b""[..], TEXT),
            (b"plain text \xc3\xa9\n", TEXT),
            (b"\x1b[31mred", TEXT),
            (b"nul\0byte", BINARY),
            (b"\x7fELF\x02\x01\x01\0", BINARY),
            (b"\x89PNG\r\n\x1a\n\0\0", "image/png"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
            (b"  <!doctype html>", "text/html; charset=utf-8"),
            (b"<htmlx", TEXT),
            (b"<?xml version='1.0'?>", "text/xml; charset=utf-8"),
        ] {
            assert_eq!(sniff(start), expected, "{}", start.escape_ascii());
        }
        let late = [&[b'a'; SNIFF][..], b"\0"].concat();
        assert_eq!(sniff(&late), TEXT, "only the beginning counts");
    }
}
