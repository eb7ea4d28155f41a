'use strict';
// Finds `import`, `export` and the `const` of a whole cell in JavaScript. It knows just enough of the
// language to tell them from the same words in strings, templates, comments and regular expressions:
// the tokens, and where a slash divides. What it cannot read it leaves for the engine to complain about.

const SPACE = /(?:\s|\/\/[^\n\r\u2028\u2029]*|\/\*[^]*?\*\/)*/y;
const ESCAPE = String.raw`\\u[\da-fA-F]{4}|\\u\{[\da-fA-F]+\}`;
const NAME = new RegExp(
  String.raw`#?(?:[\p{ID_Start}$_]|${ESCAPE})(?:[\p{ID_Continue}$\u200c\u200d]|${ESCAPE})*`,
  'uy',
);
const NUMBER = /\.?\d(?:[eE][+-]|[\w.])*/y;
const STRING = /'(?:[^'\\\n\r]|\\(?:\r\n|[^]))*'|"(?:[^"\\\n\r]|\\(?:\r\n|[^]))*"/y;
const REGEX = /\/(?:[^\\/[\n\r]|\\[^\n\r]|\[(?:[^\]\\\n\r]|\\[^\n\r])*\])+\/[\w$]*/y;
const CHUNK = /(?:[^`\\$]|\\[^]|\$(?!\{))*(?:`|\$\{)/y;
const OPERATOR = /=>|\+\+|--|\?\.(?!\d)|\.\.\.|[^]/uy;

// After these words comes an expression, so a slash begins a regular expression.
const BEFORE_EXPRESSION = new Set(
  'return typeof instanceof in of new delete void throw case do else await yield default'.split(' '),
);
// After the parentheses of these comes a statement.
const BEFORE_PARENTHESES = new Set(['if', 'while', 'for', 'with']);
// Where an expression may begin, a brace after these opens a block all the same; `undefined` is the
// beginning of the cell.
const BEFORE_BLOCK = new Set(['=>', ')', ';', '{', '}', undefined, 'else', 'do', 'try', 'finally']);

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text)?.[0];
}

// The tokens, each with its kind, its place, and how deep in brackets it is.
function tokens(text) {
  const found = [];
  const open = []; // brackets: what they are, and whether an expression begins after the closing one
  let at = 0;
  let expression = true; // whether one begins here
  let previous;

  function push(kind, value) {
    previous = { kind, value, start: at, end: at + value.length, depth: open.length };
    found.push(previous);
    at += value.length;
  }

  function chunk() {
    const value = match(CHUNK, text, at);
    if (value === undefined) return false;
    push('template', value);
    if (value.endsWith('`')) expression = false;
    else {
      open.push({ bracket: '${' });
      expression = true;
    }
    return true;
  }

  // Whether a brace that opens here begins a block, after which comes a statement, and not an object:
  // where no expression can begin, and after what wants a block.
  function isBlock() {
    return !expression || BEFORE_BLOCK.has(previous?.value);
  }

  // Whether a parenthesis that opens here belongs to `if` or the like.
  function isControl() {
    return previous?.kind === 'name' && BEFORE_PARENTHESES.has(previous.value);
  }

  function punctuator(value) {
    if (value === '(' || value === '[' || value === '{') {
      const after = value === '{' ? isBlock() : value === '(' && isControl();
      push('punctuator', value);
      open.push({ bracket: value, after });
      expression = true;
    } else if (value === ')' || value === ']' || value === '}') {
      const { after = false } = open.pop() ?? {};
      push('punctuator', value);
      expression = after;
    } else {
      push('punctuator', value);
      if (value !== '++' && value !== '--') expression = true;
    }
  }

  for (;;) {
    at += match(SPACE, text, at).length;
    if (at >= text.length) return found;
    let value;
    if (text[at] === '}' && open.at(-1)?.bracket === '${') {
      open.pop();
      at += 1;
      if (!chunk()) return found;
    } else if (text[at] === '`') {
      at += 1;
      if (!chunk()) return found;
    } else if ((value = match(NAME, text, at)) !== undefined) {
      const member = previous?.value === '.' || previous?.value === '?.';
      push('name', value);
      expression = !member && BEFORE_EXPRESSION.has(value);
    } else if ((value = match(NUMBER, text, at)) !== undefined) {
      push('number', value);
      expression = false;
    } else if ((value = match(STRING, text, at)) !== undefined) {
      push('string', value);
      expression = false;
    } else if (expression && (value = match(REGEX, text, at)) !== undefined) {
      push('regex', value);
      expression = false;
    } else punctuator(match(OPERATOR, text, at));
  }
}

// Reads tokens one after the other; `null` when they are not as expected.
class Reader {
  constructor(list, at) {
    this.list = list;
    this.at = at;
  }

  get next() {
    return this.list[this.at];
  }

  take(value) {
    if (this.next?.value !== value || this.next.kind === 'string') return null;
    return this.list[this.at++];
  }

  kind(...kinds) {
    return kinds.includes(this.next?.kind) ? this.list[this.at++] : null;
  }

  // `{ a, b as c, "d" as e, default as f }`, as pairs: what is asked for (quoted), and what it is
  // called here.
  names() {
    const pairs = [];
    while (!this.take('}')) {
      const name = this.kind('name', 'string');
      if (!name) return null;
      const local = this.take('as') ? this.kind('name', 'string') : name;
      if (!local) return null;
      pairs.push([name.kind === 'string' ? name.value : `'${name.value}'`, local.value]);
      if (!this.take(',') && this.next?.value !== '}') return null;
    }
    return pairs;
  }

  // `'module' with { type: 'json' };`, and what else the declaration has.
  module(text, load) {
    const specifier = this.kind('string');
    if (!specifier) return null;
    let options;
    if (this.take('with')) {
      const begin = this.next;
      let last;
      do last = this.list[this.at++];
      while (last && !(last.value === '}' && last.depth === begin.depth));
      if (!last) return null;
      options = `{with:${text.slice(begin.start, last.end).replace(/\s+/g, ' ')}}`;
    }
    this.take(';');
    return { ...load, specifier: specifier.value, options };
  }

  // After the word `import`.
  importation(text) {
    const bindings = [];
    let namespace;
    if (this.next?.kind === 'string') return this.module(text, { bindings });
    const local = this.kind('name');
    if (local) bindings.push(["'default'", local.value]);
    if (!local || this.take(',')) {
      if (this.take('*')) namespace = this.take('as') && this.kind('name')?.value;
      else if (this.take('{')) bindings.push(...(this.names() ?? [null]));
      else return null;
      if (namespace === null || bindings.includes(null)) return null;
    }
    return this.take('from') && this.module(text, { bindings, namespace });
  }
}

// After the word `export`: how far it is to be blanked out, with what in its place, and what is to be
// loaded.
function exportation(text, list, at) {
  const reader = new Reader(list, at);
  if (reader.take('default')) {
    const end = list[reader.at - 1].end;
    reader.take('async');
    const declares = reader.take('function') ?? reader.take('class');
    if (reader.take('*')) return { end };
    // One without a name is an expression, of which only the value is seen.
    return declares && reader.next?.kind !== 'name' ? { end, text: '0,' } : { end };
  }
  if (reader.take('*')) {
    if (reader.take('as')) reader.kind('name', 'string');
  } else if (reader.take('{')) {
    if (!reader.names()) return null;
    if (reader.next?.value !== 'from') {
      reader.take(';');
      return { end: list[reader.at - 1].end };
    }
  } else return { end: list[at - 1].end };
  const load = reader.take('from') && reader.module(text, { bindings: [] });
  return load && { end: list[reader.at - 1].end, load };
}

// Whether parentheses are followed by a block: then they are the parameters of a method.
function isMethod(list, at) {
  const closing = list.findIndex(
    ({ value, depth }, index) => index > at && value === ')' && depth === list[at].depth,
  );
  return list[closing + 1]?.value === '{';
}

// What is to be replaced, in order: from `start` to `end` by `text`, padded with blanks, or by blanks;
// and `load`, the import that a declaration stands for.
function scan(text) {
  const list = tokens(text);
  const edits = [];
  for (let at = 0; at < list.length; at += 1) {
    const { kind, value, start, end, depth } = list[at];
    const previous = list[at - 1]?.value;
    if (kind !== 'name' || previous === '.' || previous === '?.') continue;
    const next = list[at + 1];
    let edit;
    if (value === 'import' && (next?.value === '.' || (next?.value === '(' && !isMethod(list, at + 1)))) {
      edit = { end, text: '$atoll' };
    } else if (value === 'import' && depth === 0) {
      const reader = new Reader(list, at + 1);
      const load = reader.importation(text);
      if (load) edit = { end: list[reader.at - 1].end, load };
    } else if (value === 'const' && depth === 0) {
      edit = { end, text: 'let' };
    } else if (value === 'export' && depth === 0) {
      edit = exportation(text, list, at + 1);
    }
    if (!edit) continue;
    edits.push({ start, ...edit });
    while (list[at + 1]?.start < edit.end) at += 1;
  }
  return edits;
}

module.exports = { scan };
