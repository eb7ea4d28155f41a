import http from 'node:http'

import { type Sandbox } from 'e2b'
import { beforeAll, expect, test } from 'vitest'

import { get, hostOf, shared } from './support'

let sandbox: Sandbox
beforeAll(async () => {
  sandbox = await shared()
  return () => sandbox.kill()
})

/** Path and query of a link: it is followed by the sandbox's name, which needs no DNS. */
const target = (link: string) => {
  const url = new URL(link)
  return url.pathname + url.search
}

const follow = (link: string) => get(hostOf(sandbox, 49983), target(link))

/** Uploads by a link, as a form, without a token. */
async function send(link: string, content: string): Promise<number> {
  const form = new FormData()
  form.append('file', new Blob([content]), 'ignored.txt')
  const body = new Request('http://form', { method: 'POST', body: form })
  const headers = {
    Host: hostOf(sandbox, 49983),
    'Content-Type': body.headers.get('content-type') ?? '',
  }
  const bytes = Buffer.from(await body.arrayBuffer())
  return new Promise((resolve, reject) => {
    const url = new URL(target(link), process.env.E2B_SANDBOX_URL)
    const request = http.request(url, { method: 'POST', headers }, (response) => {
      response.resume()
      response.on('end', () => resolve(response.statusCode ?? 0))
    })
    request.on('error', reject)
    request.end(bytes)
  })
}

// Rules: GET-1, PUT-4, TRAP-6
test('links for any path, with and without an end', async () => {
  for (const path of ['signed a&b ü+%.txt', '/tmp/signed', '~/signed', "it's \"quoted\"\n"]) {
    for (const options of [{}, { useSignatureExpiration: 60 }]) {
      const content = `${path} ${JSON.stringify(options)}`
      expect(await send(await sandbox.uploadUrl(path, options), content)).toBe(200)
      expect(await sandbox.files.read(path)).toBe(content)
      const link = await sandbox.downloadUrl(path, options)
      expect(await follow(link)).toEqual({ status: 200, body: content })
    }
  }
})

// Rules: GET-1, PATH-6
test('links act for their user', async () => {
  const options = { user: 'root' as const, useSignatureExpiration: 60 }
  expect(await send(await sandbox.uploadUrl('of-root', options), 'x')).toBe(200)
  expect((await sandbox.files.getInfo('/root/of-root')).owner).toBe('root')
  expect((await follow(await sandbox.downloadUrl('of-root', options))).body).toBe('x')
})

// Rules: GET-1, TRAP-6
test('links that allow nothing', async () => {
  await sandbox.files.write('kept', 'x')
  const good = await sandbox.downloadUrl('kept', { useSignatureExpiration: 60 })
  const expired = await sandbox.downloadUrl('kept', { useSignatureExpiration: -60 })
  const refused: [string, string][] = [
    [expired, 'signature is already expired'],
    [await sandbox.uploadUrl('kept'), 'invalid signature'],
    [good.replace('path=kept', 'path=%2Fetc%2Fpasswd'), 'invalid signature'],
    [`${good}&username=root`, 'invalid signature'],
    [good.replace(/&?signature_expiration=\d+/, ''), 'invalid signature'],
    [good.replace(/&?signature=[^&]+/, ''), 'missing signature query parameter'],
  ]
  for (const [link, message] of refused) {
    const answer = await follow(link)
    expect(JSON.parse(answer.body), link).toEqual({ code: 401, message })
    expect(answer.status).toBe(401)
  }
  expect(await send(good, 'overwritten')).toBe(401)
  expect(await send(await sandbox.uploadUrl('kept', { useSignatureExpiration: -60 }), 'x')).toBe(401)
  expect(await sandbox.files.read('kept')).toBe('x')
})
