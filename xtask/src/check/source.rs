//! Rust text without what is no code: comments, literals and tests.

/// The same text with blanks in place of comments, of the contents of literals, and of what is
/// compiled for tests only. Lines stay where they are.
pub(crate) fn code(source: &str) -> String {
    without_tests(&without_comments(source))
}

fn without_comments(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut code: Vec<char> = Vec::with_capacity(chars.len());
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut i = 0;
    while i < chars.len() {
        let start = i;
        let previous = if i == 0 { '\0' } else { chars[i - 1] };
        i = match (at(i), at(i + 1)) {
            ('/', '/') => find(&chars, i, |c| c == '\n'),
            ('/', '*') => block_comment(&chars, i),
            ('"', _) => string(&chars, i),
            ('r', '"' | '#') if !is_word(previous) || previous == 'b' => raw_string(&chars, i),
            ('\'', _) => char_or_lifetime(&chars, i),
            _ => i,
        };
        if i == start {
            code.push(chars[i]);
            i += 1;
        } else {
            let blank = |c: &char| if *c == '\n' { '\n' } else { ' ' };
            code.extend(chars[start..i.min(chars.len())].iter().map(blank));
        }
    }
    code.into_iter().collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn find(chars: &[char], from: usize, is: impl Fn(char) -> bool) -> usize {
    (from..chars.len()).find(|i| is(chars[*i])).unwrap_or(chars.len())
}

fn block_comment(chars: &[char], start: usize) -> usize {
    let (mut i, mut depth) = (start + 2, 1);
    while i < chars.len() && depth > 0 {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    i
}

fn string(chars: &[char], start: usize) -> usize {
    let mut i = start + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

/// `r"…"`, `r#"…"#`; the start if it is a raw identifier.
fn raw_string(chars: &[char], start: usize) -> usize {
    let quote = find(chars, start + 1, |c| c != '#');
    if chars.get(quote) != Some(&'"') {
        return start;
    }
    let hashes = quote - start - 1;
    let mut i = quote + 1;
    while i < chars.len() {
        let tail = &chars[i..];
        if tail[0] == '"' && tail[1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes
        {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

/// The end of a character literal; the start if it is a lifetime.
fn char_or_lifetime(chars: &[char], start: usize) -> usize {
    match (chars.get(start + 1), chars.get(start + 2)) {
        (Some('\\'), _) => find(chars, start + 3, |c| c == '\'') + 1,
        (Some(_), Some('\'')) => start + 3,
        _ => start,
    }
}

/// Blanks items under `#[cfg(test)]` and `#[cfg(all(test, …))]`.
fn without_tests(code: &str) -> String {
    let mut chars: Vec<char> = code.chars().collect();
    let mut i = 0;
    while i < chars.len() {
        if chars[i] == '#' && is_of_test(&chars[i..]) {
            let end = item_end(&chars, i);
            chars[i..end].iter_mut().filter(|c| **c != '\n').for_each(|c| *c = ' ');
            i = end;
        } else {
            i += 1;
        }
    }
    chars.into_iter().collect()
}

fn is_of_test(attribute: &[char]) -> bool {
    let compact: String =
        attribute.iter().take(64).filter(|c| !c.is_whitespace()).take(15).collect();
    ["#[cfg(test)]", "#[cfg(all(test"].iter().any(|start| compact.starts_with(start))
}

/// The end of the item that begins here with its attributes.
fn item_end(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0_i32, start);
    while i < chars.len() {
        match chars[i] {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' => depth -= 1,
            '}' => {
                depth -= 1;
                if depth <= 0 {
                    return i + 1;
                }
            }
            ';' if depth == 0 => return i + 1,
            _ => {}
        }
        i += 1;
    }
    i
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_code_is_blank() {
        for (source, expected) in [
            ("a // b\nc", "a \nc"),
            ("a /* b /* c */ d */ e", "a e"),
            ("f(\"b // \\\" c\", d)", "f( , d)"),
            ("f(r#\"b \" c\"#, d)", "f( , d)"),
            ("f('\"', b, '\\'', c)", "f( , b, , c)"),
            ("fn f<'a>(b: &'a str) {}", "fn f<'a>(b: &'a str) {}"),
            ("r#use + a", "r#use + a"),
            ("a\n#[cfg(test)]\nmod tests { use b; }\nc", "a\n\n\nc"),
            ("#[cfg(all(test, not(x)))]\n#[path = \"y\"]\nmod tests;\nc", "\n\n\nc"),
            ("#[cfg(not(test))] use a;", "#[cfg(not(test))] use a;"),
        ] {
            let squeezed = |text: &str| {
                let lines = text.lines().map(|line| {
                    line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
                });
                lines.collect::<Vec<_>>()
            };
            assert_eq!(squeezed(&code(source)), squeezed(expected), "{source}");
        }
    }
}
