import { GitAuthError, GitUpstreamError, type Sandbox } from 'e2b'
import { beforeAll, expect, test } from 'vitest'

import { shared, until } from './support'

let sandbox: Sandbox
beforeAll(async () => {
  sandbox = await shared()
  return () => sandbox.kill()
})

async function commit(repository: string, name: string, content = 'x\n') {
  await sandbox.files.write(`${repository}/${name}`, content)
  await sandbox.git.add(repository)
  const author = { authorName: 'Ada', authorEmail: 'ada@example.test' }
  await sandbox.git.commit(repository, `Add ${name}`, author)
}

// Rules: SDK-6
test('a repository from nothing', async () => {
  const { git } = sandbox
  await git.init('fresh', { initialBranch: 'main' })
  await git.configureUser('Ada L', 'ada@example.test', { scope: 'local', path: 'fresh' })
  await sandbox.files.write('fresh/a b.txt', 'one\n')
  expect(await git.status('fresh')).toMatchObject({
    currentBranch: 'main',
    hasUntracked: true,
    hasStaged: false,
  })
  await git.add('fresh')
  const staged = await git.status('fresh')
  expect(staged.fileStatus.map((file) => [file.status, file.staged])).toEqual([['added', true]])
  await git.commit('fresh', 'A "quoted" message; with $(nothing) run')
  expect((await git.status('fresh')).isClean).toBe(true)
  const log = await sandbox.commands.run("git -C fresh log --format='%an <%ae>: %s'")
  expect(log.stdout).toBe('Ada L <ada@example.test>: A "quoted" message; with $(nothing) run\n')
})

test('changes and their undoing', async () => {
  const { git } = sandbox
  await git.init('undo', { initialBranch: 'main' })
  for (const name of ['changed', 'removed']) await commit('undo', name, `${name}\n`)
  await sandbox.files.write('undo/changed', 'other\n')
  await sandbox.commands.run('rm undo/removed')
  const { fileStatus } = await git.status('undo')
  expect(fileStatus.map((file) => [file.name, file.status])).toEqual([
    ['changed', 'modified'],
    ['removed', 'deleted'],
  ])
  await git.restore('undo', { paths: ['removed'] })
  expect(await sandbox.files.read('undo/removed')).toBe('removed\n')
  await git.reset('undo', { mode: 'hard' })
  expect((await git.status('undo')).isClean).toBe(true)
})

test('branches', async () => {
  const { git } = sandbox
  await git.init('branches', { initialBranch: 'main' })
  await commit('branches', 'first')
  await git.createBranch('branches', 'feature/one')
  await commit('branches', 'second')
  const { branches, currentBranch } = await git.branches('branches')
  expect([branches.sort(), currentBranch]).toEqual([['feature/one', 'main'], 'feature/one'])
  await git.checkoutBranch('branches', 'main')
  await expect(git.deleteBranch('branches', 'feature/one')).rejects.toMatchObject({
    stderr: expect.stringContaining('not fully merged'),
  })
  await git.deleteBranch('branches', 'feature/one', { force: true })
  expect((await git.branches('branches')).branches).toEqual(['main'])
})

test('settings and remotes', async () => {
  const { git } = sandbox
  await git.init('settings')
  expect(await git.getConfig('no.such')).toBeUndefined()
  await git.setConfig('pull.rebase', 'false', { scope: 'local', path: 'settings' })
  expect(await git.getConfig('pull.rebase', { scope: 'local', path: 'settings' })).toBe('false')
  expect(await git.remoteGet('settings', 'origin')).toBeUndefined()
  await git.remoteAdd('settings', 'origin', 'file:///srv/a.git')
  await git.remoteAdd('settings', 'origin', 'file:///srv/b.git', { overwrite: true })
  expect(await git.remoteGet('settings', 'origin')).toBe('file:///srv/b.git')
})

test('push and pull', async () => {
  const { git } = sandbox
  const hub = 'file:///home/user/hub.git'
  await git.init('hub.git', { bare: true, initialBranch: 'main' })
  await git.clone(hub, { path: 'one' })
  await sandbox.commands.run('git -C one checkout -b main')
  await commit('one', 'first')
  await git.push('one', { remote: 'origin', branch: 'main' })
  await git.clone(hub, { path: 'two', branch: 'main', depth: 1 })
  await commit('one', 'second')
  const status = await git.status('one')
  expect([status.upstream, status.ahead, status.behind]).toEqual(['origin/main', 1, 0])
  await git.push('one')
  await git.pull('two')
  expect(await sandbox.files.exists('two/second')).toBe(true)
  await git.createBranch('two', 'lonely')
  await expect(git.pull('two')).rejects.toThrow(GitUpstreamError)
})

/** A server that wants a user, and has nothing else to say. */
const GATE = `
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="git"')
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", 8124), Handler).serve_forever()
`

test('a server that asks who is there', async () => {
  const { git } = sandbox
  await sandbox.files.write('/tmp/gate.py', GATE)
  await sandbox.commands.run('exec python3 /tmp/gate.py', { background: true, timeoutMs: 0 })
  const listens = async () => (await sandbox.commands.run('ss -Htln')).stdout.includes(':8124 ')
  await until('the server', listens)
  const url = 'http://127.0.0.1:8124/private.git'
  for (const credentials of [{}, { username: 'ada', password: 'wrong' }]) {
    await expect(git.clone(url, { path: 'refused', ...credentials })).rejects.toThrow(GitAuthError)
  }
  const ada = { username: 'ada', password: 's3cret' }
  await git.dangerouslyAuthenticate({ ...ada, host: '127.0.0.1:8124', protocol: 'http' })
  const stored = 'http://ada:s3cret@127.0.0.1'
  expect(await sandbox.files.read('.git-credentials')).toContain(stored)
})
