"""Downloads URL and compares it with FILE, as far as it is told: "more" reads 2 MiB and says "more", "rest" reads the rest and says "identical" or what is not."""
import sys
import urllib.request

url, file = sys.argv[1:]
with open(file, "rb") as expected, urllib.request.urlopen(url) as response:
    print("begun", flush=True)
    at = 0
    for line in sys.stdin:
        rest = line.strip() == "rest"
        wanted = expected.read(-1 if rest else 2 << 20)
        got = response.read(-1 if rest else len(wanted))
        if got != wanted:
            print(f"{len(got)} bytes from {at} on are not the {len(wanted)} of the file", flush=True)
            sys.exit(1)
        at += len(got)
        print("identical" if rest else "more", flush=True)
