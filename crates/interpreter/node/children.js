'use strict';
// Programs that cells start print past us: all that was printed before is to be told before it.

const children = require('node:child_process');
const { syncBuiltinESMExports } = require('node:module');

const output = require('./output.js');

function after(call) {
  function started(...values) {
    output.sync();
    return call.apply(this, values);
  }
  Object.defineProperty(started, 'name', { value: call.name });
  return started;
}

function install() {
  // All that return at once start their programs by this.
  const { prototype } = children.ChildProcess;
  prototype.spawn = after(prototype.spawn);
  for (const name of ['execFileSync', 'execSync', 'spawnSync']) {
    children[name] = after(children[name]);
  }
  syncBuiltinESMExports();
}

module.exports = { install };
