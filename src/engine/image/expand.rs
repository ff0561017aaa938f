//! Words of a Dockerfile's instruction: quotes and escapes taken out, variables put in (BuildKit's shell lexer).
//!
//! `$name`, `${name}`; with `:` a value that is empty counts as none: `${name-word}` and `${name:-word}` are the word where
//! there is no value, `${name+word}` and `${name:+word}` the word where there is one, `${name?word}` and `${name:?word}` an
//! error where there is none. A word may have variables itself. Between single quotes nothing is special; between double
//! quotes variables are, and a backslash before `"`, `$` or another backslash.

use std::iter::Peekable;
use std::str::Chars;

/// How deep one variable may stand in the word of another.
const DEPTH_MAX: u32 = 100;

/// The words of a line that blanks divide, each as it stands there.
pub(crate) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote) = (String::new(), None);
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), _) if open == character => quote = None,
            (None | Some('"'), '\\') => {
                word.push(character);
                word.extend(characters.next());
                continue;
            }
            (None, blank) if blank.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(character);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// What a word means; `env` has the variables as `NAME=VALUE`. The error says what is wrong with the word.
pub(crate) fn expand(word: &str, env: &[String]) -> Result<String, String> {
    Lexer { rest: word.chars().peekable(), env, depth: 0 }.until(None)
}

struct Lexer<'a> {
    rest: Peekable<Chars<'a>>,
    env: &'a [String],
    depth: u32,
}

impl Lexer<'_> {
    /// Up to a character, which is taken too, or to the end.
    fn until(&mut self, stop: Option<char>) -> Result<String, String> {
        let mut found = String::new();
        while let Some(character) = self.rest.next() {
            match character {
                _ if Some(character) == stop => return Ok(found),
                '\'' => self.single_quoted(&mut found)?,
                '"' => self.double_quoted(&mut found)?,
                '$' => found.push_str(&self.variable()?),
                '\\' => found.extend(self.rest.next()),
                _ => found.push(character),
            }
        }
        stop.map_or(Ok(found), |stop| Err(format!("a {stop:?} is missing")))
    }

    fn single_quoted(&mut self, found: &mut String) -> Result<(), String> {
        loop {
            match self.rest.next() {
                Some('\'') => return Ok(()),
                Some(character) => found.push(character),
                None => return Err("a single quote is not closed".to_owned()),
            }
        }
    }

    fn double_quoted(&mut self, found: &mut String) -> Result<(), String> {
        loop {
            match self.rest.next() {
                Some('"') => return Ok(()),
                Some('$') => found.push_str(&self.variable()?),
                Some('\\') => match self.rest.next_if(|next| ['"', '$', '\\'].contains(next)) {
                    Some(special) => found.push(special),
                    None => found.push('\\'),
                },
                Some(character) => found.push(character),
                None => return Err("a double quote is not closed".to_owned()),
            }
        }
    }

    /// What stands behind a `$`.
    fn variable(&mut self) -> Result<String, String> {
        if self.rest.next_if_eq(&'{').is_none() {
            let name = self.name();
            return Ok(if name.is_empty() { "$".to_owned() } else { self.value(&name).unwrap_or_default() });
        }
        let name = self.name();
        if name.is_empty() {
            return Err("a ${ is followed by no name".to_owned());
        }
        let value = self.value(&name);
        let (value, how) = match self.rest.next() {
            Some('}') => return Ok(value.unwrap_or_default()),
            Some(':') => (value.filter(|value| !value.is_empty()), self.rest.next()),
            how => (value, how),
        };
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} variables stand in one another"));
        }
        let word = self.until(Some('}'))?;
        self.depth -= 1;
        match (how, value) {
            (Some('-'), value) => Ok(value.unwrap_or(word)),
            (Some('+'), value) => Ok(value.map(|_| word).unwrap_or_default()),
            (Some('?'), Some(value)) => Ok(value),
            (Some('?'), None) if word.is_empty() => Err(format!("{name} is not set")),
            (Some('?'), None) => Err(format!("{name}: {word}")),
            _ => Err(format!("${{{name} is followed by none of }}, -, +, ?, :-, :+ and :?")),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        let digits = self.rest.peek().is_some_and(char::is_ascii_digit);
        let belongs =
            |next: &char| if digits { next.is_ascii_digit() } else { next.is_ascii_alphanumeric() || *next == '_' };
        while let Some(next) = self.rest.next_if(belongs) {
            name.push(next);
        }
        name
    }

    fn value(&self, name: &str) -> Option<String> {
        let pairs = self.env.iter().filter_map(|entry| entry.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next_back()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_what_buildkit_says() {
        let env = ["A=1 2".to_owned(), "EMPTY=".to_owned(), "PATH=/bin".to_owned()];
        for (word, meaning) in [
            ("$PATH:/x", "/bin:/x"),
            ("${PATH}x$A", "/binx1 2"),
            ("$NONE-${NONE}", "-"),
            ("${NONE:-d}${EMPTY:-e}${EMPTY-f}${A:-g}", "de1 2"),
            ("${NONE:+d}${EMPTY:+e}${EMPTY+f}${A:+g}", "fg"),
            ("${NONE:-${EMPTY:-$PATH}}", "/bin"),
            ("${NONE:-'}'}", "}"),
            ("'$A'\"$A\"", "$A1 2"),
            ("\\$A\"\\$A\\n\"", "$A$A\\n"),
            ("a\\ b$", "a b$"),
            ("${A:?x}", "1 2"),
            ("$1x", "x"),
        ] {
            assert_eq!(expand(word, &env).as_deref(), Ok(meaning), "{word}");
        }
        for wrong in ["${", "${}", "${A", "${A:", "${A/x/y}", "${NONE:?no}", "'", "\"x", "${:-a}"] {
            assert!(expand(wrong, &env).is_err(), "{wrong}");
        }
        assert!(expand(&"${X:-".repeat(1_000_000), &env).is_err());
    }

    #[test]
    fn blanks_divide_words_unless_they_are_quoted() {
        assert_eq!(split(" a=\"x y\"  b=c\\ d 'e f'g \\"), ["a=\"x y\"", "b=c\\ d", "'e f'g", "\\"]);
        assert!(split("  ").is_empty());
    }
}
