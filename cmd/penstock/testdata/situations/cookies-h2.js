// Over HTTP/2 browsers send each cookie in a field of its own (RFC 9113 8.2.3). 
const h2 = require('http2');
const n = +process.argv[2];
const c = h2.connect(process.env.GATEWAY);
const s = c.request({ ':path': '/x', ':authority': 'echo.field.example', cookie: Array.from({ length: n }, (_, i) => `c${i}=v${i}`) });
s.on('response', (h) => { console.log(h[':status']); process.exit(0); });
s.on('error', (e) => { console.log('reset: ' + e.message); process.exit(0); });
s.end();
