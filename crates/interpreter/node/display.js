'use strict';
// Values in representations by media type, and `display`, which cells show them with.

const util = require('node:util');

const output = require('./output.js');

const SYMBOL = Symbol.for('Jupyter.display');
const TYPES = {
  html: 'text/html',
  markdown: 'text/markdown',
  latex: 'text/latex',
  svg: 'image/svg+xml',
  png: 'image/png',
  jpeg: 'image/jpeg',
  pdf: 'application/pdf',
  json: 'application/json',
  javascript: 'application/javascript',
};

// Bytes as base64, as media types that are not text are written; all else as it is.
function plain(value) {
  if (value instanceof ArrayBuffer) return Buffer.from(value).toString('base64');
  if (!ArrayBuffer.isView(value)) return value;
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('base64');
}

function tidy(data) {
  return Object.fromEntries(
    Object.entries(data)
      .filter(([, value]) => value !== undefined)
      .map(([type, value]) => [type, plain(value)]),
  );
}

// What an object says of itself, or else its text. A promise if the object gives one.
function bundle(value) {
  const own = value === null || value === undefined ? undefined : value[SYMBOL];
  // Texts in full: what is long is long because somebody wants it.
  if (typeof own !== 'function') {
    return { 'text/plain': util.inspect(value, { maxStringLength: Infinity }) };
  }
  const data = own.call(value);
  return typeof data?.then === 'function' ? data.then(tidy) : tidy(data);
}

function show(data) {
  output.tell({ type: 'show', data, main: false });
}

function display(value) {
  const data = bundle(value);
  return typeof data.then === 'function' ? data.then(show) : show(data);
}

function install() {
  for (const [name, type] of Object.entries(TYPES)) {
    display[name] = (value) => show(tidy({ [type]: value }));
  }
  display.mime = (data) => show(tidy(data));
  Object.defineProperty(globalThis, 'display', {
    configurable: true,
    enumerable: false,
    writable: true,
    value: display,
  });
}

module.exports = { bundle, install };
