# What programs do to a root file system; run in the mounted overlay and in a plain copy, the results are compared.
set -eu
umask 022
# package manager: unpack over what is there, keep modes, owners, times
mkdir -p stage/pkg/bin stage/pkg/doc
i=0; while [ $i -lt 60 ]; do echo "file $i" > stage/pkg/doc/f$i; i=$((i+1)); done
echo tool > stage/pkg/bin/tool; chmod 4755 stage/pkg/bin/tool; ln -s ../doc stage/pkg/bin/docs; ln stage/pkg/bin/tool stage/pkg/bin/hard
touch -d 2001-02-03T04:05:06.789 stage/pkg/doc/f1; mkfifo stage/pkg/pipe
tar -C stage -cf pkg.tar pkg
mkdir unpacked; tar -C unpacked -xpf pkg.tar
cp -a lower/deep copy-of-deep
cp -a unpacked/pkg/. again
mv lower/moved elsewhere
echo more >> elsewhere/inside
mv elsewhere/sub back
ln lower/file hard-to-lower
echo appended >> lower/file
chmod -R go-rwx lower/deep
chown -R 0:0 lower/deep
rm -r lower/gone
mkdir lower/gone; echo new > lower/gone/new
rm lower/links/one
truncate -s 3 lower/big
truncate -s 100000 lower/grow
: > lower/emptied
dd if=/dev/zero of=sparse bs=1 count=1 seek=5000000 status=none
cp --sparse=always sparse sparse-copy
# git: created read-only, written through the open descriptor
( umask 0333; echo object > git-object )
stat -c '%a %s' git-object
# unlinked while open
exec 3<lower/open; rm lower/open; cat <&3; exec 3<&-
exec 4<>fresh; echo hidden >&4; rm fresh; cat <fresh 2>/dev/null || echo gone; exec 4>&-
# editors: write beside, rename over
echo v2 > lower/.edit; mv lower/.edit lower/edited; cat lower/edited
echo v3 > tmp; mv -T tmp lower/edited; cat lower/edited
# mapped reads and writes
python3 - <<'P' || echo 'no python'
import mmap, os
f = open('lower/mapped', 'r+b'); m = mmap.mmap(f.fileno(), 0)
m[0:5] = b'MMAP!'; m.flush(); m.close(); print(open('lower/mapped', 'rb').read(12))
d = 'many'; os.mkdir(d)
for i in range(500): open(f'{d}/{i}', 'w').close()
n = 0
for e in os.scandir(d): os.unlink(e.path); n += 1
print(n, os.listdir(d)); os.rmdir(d)
try: os.rename('lower', 'lower/deep/x')
except OSError as e: print(e.errno)
try: os.rmdir('lower')
except OSError as e: print(e.errno)
fd = os.open('lower/mapped', os.O_RDWR); st = os.fstat(fd); os.pwrite(fd, b'x', 1); print(os.fstat(fd).st_ino == st.st_ino)
a = os.open('sparse', os.O_RDONLY); print(os.lseek(a, 4096, os.SEEK_DATA) > 4096)
P
mv copy-of-deep lower/deep/nested
rm -rf again stage pkg.tar # the archive holds the time of the run
touch -h -d 2002-01-01 unpacked/pkg/bin/docs
touch -d 1999-01-01 lower/links/two
sync -f .
