"""Parts which the tests share: servers, databases, the proxy as a process, raw protocol clients, scripted servers."""
