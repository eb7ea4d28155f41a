//! `Content-Disposition`: read from the parts of an upload, written for downloads.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Where a part of a form belongs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FormPart {
    /// Name of the field.
    pub name: Option<String>,
    /// Name of the file as the client sent it, directories and percent escapes included.
    pub filename: Option<String>,
}

/// Finds field and file name in the header lines of a part. `None` when they are not those of a
/// form field.
pub fn form_part(headers: &[u8]) -> Option<FormPart> {
    let value = std::str::from_utf8(headers).ok()?.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    let (kind, parameters) = value.split_once(';').unwrap_or((value, ""));
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return None;
    }
    let mut part = FormPart::default();
    let mut extended = None;
    let mut rest = parameters;
    while let Some((name, value, after)) = parameter(rest) {
        match name.to_ascii_lowercase().as_str() {
            "name" => part.name = Some(value.into_owned()),
            "filename" => part.filename = Some(value.into_owned()),
            "filename*" => extended = decode_extended(&value),
            _ => {}
        }
        rest = after;
    }
    part.filename = part.filename.or(extended);
    Some(part)
}

/// Splits `; name=value` off the front: name, value, rest.
fn parameter(text: &str) -> Option<(&str, Cow<'_, str>, &str)> {
    let text = text.trim_start_matches([' ', '\t', ';']);
    let (name, after) = text.split_once('=')?;
    let after = after.trim_start_matches([' ', '\t']);
    let (value, rest) = match after.strip_prefix('"') {
        Some(quoted) => {
            let (value, rest) = unquote(quoted)?;
            (Cow::Owned(value), rest)
        }
        None => {
            let end = after.find(';').unwrap_or(after.len());
            (Cow::Borrowed(after[..end].trim_end()), &after[end..])
        }
    };
    Some((name.trim_end(), value, rest))
}

/// Reads up to the closing quote: content and rest.
///
/// A backslash escapes only what has a meaning in a header: old browsers send Windows paths with
/// plain backslashes.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next_if(|(_, next)| "()<>@,;:\\\"/[]?=".contains(*next)) {
                Some((_, escaped)) => value.push(escaped),
                None => value.push('\\'),
            },
            _ => value.push(char),
        }
    }
    None
}

/// `utf-8'language'percent-encoded`.
fn decode_extended(value: &str) -> Option<String> {
    let mut fields = value.splitn(3, '\'');
    let (charset, _language, encoded) = (fields.next()?, fields.next()?, fields.next()?);
    let text = percent_decode_str(encoded).decode_utf8().ok()?;
    charset.eq_ignore_ascii_case("utf-8").then(|| text.into_owned())
}

/// What an extended parameter value carries unencoded, besides letters and digits.
const EXTENDED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// The header of a download that a browser is to show, under this name.
pub fn inline(filename: &str) -> String {
    let printable = |byte: u8| matches!(byte, 0x20..=0x7e);
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !filename.is_empty() && filename.bytes().all(token) {
        format!("inline; filename={filename}")
    } else if filename.bytes().all(printable) {
        let escaped = filename.replace('\\', "\\\\").replace('"', "\\\"");
        format!("inline; filename=\"{escaped}\"")
    } else {
        format!("inline; filename*=utf-8''{}", utf8_percent_encode(filename, EXTENDED))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filename(value: &str) -> Option<String> {
        let line = format!("Content-Disposition: form-data; name=\"file\"; {value}");
        let part = form_part(line.as_bytes()).unwrap();
        assert_eq!(part.name.as_deref(), Some("file"));
        part.filename
    }

    // Rules: PUT-4, PUT-27
    #[test]
    fn file_names_are_kept_as_sent() {
        for (sent, expected) in [
            (r#"filename="a.txt""#, "a.txt"),
            (r#"filename="/home/user/a/b.txt""#, "/home/user/a/b.txt"),
            (r#"filename="a%22b%5C%0D.txt""#, "a%22b%5C%0D.txt"),
            (r#"filename="a\"b\\c;d.txt""#, r#"a"b\c;d.txt"#),
            (r#"filename="C:\dir\file""#, r"C:\dir\file"),
            (r#"filename="é 文.txt""#, "é 文.txt"),
            ("filename=plain.txt ", "plain.txt"),
            (r#"FileName = "a""#, "a"),
            ("filename*=UTF-8''na%C3%AFve%20name", "naïve name"),
            (r#"filename*=utf-8'en'x; filename="plain""#, "plain"),
        ] {
            assert_eq!(filename(sent).as_deref(), Some(expected), "{sent}");
        }
        assert_eq!(filename("other=1"), None);
        assert_eq!(filename("filename=\"open"), None);
        assert_eq!(filename("filename*=latin1''x"), None);
    }

    #[test]
    fn only_form_fields_count() {
        let lines = b"Content-Type: a/b\r\ncontent-disposition:form-data;name=x\r\nX: y";
        assert_eq!(form_part(lines).unwrap().name.as_deref(), Some("x"));
        assert_eq!(form_part(b"Content-Disposition: attachment; name=\"file\""), None);
        assert_eq!(form_part(b"Content-Type: a/b"), None);
        assert_eq!(form_part(b"Content-Disposition: form-data; name=\"\xff\""), None);
        assert_eq!(form_part(b""), None);
    }

    // Rules: GET-7
    #[test]
    fn downloads_name_the_file_in_the_simplest_way() {
        assert_eq!(inline("a.txt"), "inline; filename=a.txt");
        assert_eq!(inline("a b.txt"), "inline; filename=\"a b.txt\"");
        assert_eq!(inline(r#"a"\b"#), r#"inline; filename="a\"\\b""#);
        assert_eq!(inline("é;.txt"), "inline; filename*=utf-8''%C3%A9%3B.txt");
        assert_eq!(inline("a\nb"), "inline; filename*=utf-8''a%0Ab");
    }

    proptest! {
        #[test]
        fn any_header_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let line = [b"Content-Disposition: form-data; ", &bytes[..]].concat();
            form_part(&line);
        }

        #[test]
        fn a_download_name_is_a_valid_header(name in any::<String>()) {
            prop_assert!(http::HeaderValue::from_str(&inline(&name)).is_ok());
        }
    }
}
