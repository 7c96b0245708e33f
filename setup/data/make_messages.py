"""生成 messages.tsv：5,572 条带标注的英文短信，第 6 章没有原书数据时用它

样子照着原书用的那份短信：每行「标签<制表符>正文」，ham（正常）4,825 条，spam（垃圾）747 条，同样不平衡。
内容全部是为本项目写的：句式手写在下面，由规则拼装。没有摘抄任何现成的短信，人名、商家、网址、电话都是虚构的
（网址用保留的 .example，电话用英国留给影视剧的号段）。许可：CC0 1.0，可任意使用，不必署名。

怎样让它不至于太容易：
    · 正常短信里也有中奖、付钱、验证码、免费、链接（ORDINARY 里的 money、notices、luck）；
    · 垃圾短信里也有不带这些词的（UNWANTED 里的 stranger、family、job），装成熟人、招聘、房东；
    · 两类都有错字、缩写、全小写、漏标点，长短从两三个词到 160 个字符，正文里有逗号、分号、引号。

怎样防止"几乎一样"的两条分到训练集和测试集两边：把一条短信（弄乱之前）里相邻的两个词算一对，数字一律当成 0；
两条短信共有的对数，除以两条加起来不同的对数（Jaccard 相似度），达到 0.5 就不要后来的那条。整个文件里没有两条近似，
怎么切分都不会漏过去。句式当然还会重复出现，所以这份数据比真实的短信容易，见 ch06/README.md 的学习笔记。

运行：
    python setup/data/make_messages.py          # 重写 setup/data/messages.tsv，每次都逐字节相同
    约 1 秒，0.1 GB（2 核 CPU）
"""

import csv
import io
import random
import re
from pathlib import Path

PATH = Path(__file__).resolve().parent / "messages.tsv"
NUM_HAM, NUM_SPAM = 4825, 747  # 与原书的数据一样多，于是切分和批数也与书上相同
SIMILAR = 0.5  # 相似到这个程度就不要
LONGEST = 160  # 一条短信最多 160 个字符：这是短信网络的规定

# <名字> 换成下面随机的一项，{甲|乙|丙} 选一个，<4d> 是 4 位数字。
SLOTS = {
    "name": "Ana,Ben,Chloe,Dev,Ella,Femi,Grace,Ivan,Jo,Leah,Max,Nina,Omar,Priya,Sam,Zoe,Auntie May,Mr Okoro,Mrs Bell".split(","),
    "day": "Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday,tomorrow,the weekend,next week".split(","),
    "time": "7,8.30,half six,noon,quarter past 4,10ish,5pm,9 in the morning,lunchtime,about three,11.15,6:45".split(","),
    "place": "the harbour cafe,the library,platform 2,the bus stop,the park gate,your office,the bakery,the pool,the market,the cinema,gran's,the garage,the corner shop,the car park".split(","),
    "food": "lentil soup,pancakes,fried rice,a roast,tacos,dumplings,leftover curry,cheese on toast,mushroom pie,noodles,apple crumble,fish fingers,a big salad,banana bread".split(","),
    "thing": "umbrella,charger,blue jacket,library card,spare key,camera,lunchbox,red scarf,notebook,bike pump,headphones,passport,gym bag,glasses,guitar,tent".split(","),
    "subject": "maths,chemistry,history,geography,biology,the driving theory,statistics,Spanish,the piano grade,economics".split(","),
    "team": "the reds,our lot,the under 12s,the visitors,Rovers,the home side,the girls,the office five-a-side".split(","),
    "money": "£5,£8,£12,£15,£20,£30,£40,a tenner,forty quid,£7.50".split(","),
    "bigmoney": "£500;£750;£1,000;£1500;£2,000;£5000;£10,000;£250;$900;$3,000;€1200;€400".split(";"),
    "prize": "a weekend in Rome,a new phone,a 50 inch TV,a holiday for two,a shopping voucher,a games console,a luxury hamper,concert tickets,a city break,a tablet,a year of free fuel,a spa day".split(","),
    "firm": "Brightlane,Northmere,Tellow,PrizeDesk,Fernpost,Larkwell,Quickbasket,Zapmobile,Goldenline,Homefirst,Velora,Dealhive".split(","),
    "shop": "Pennyfield's,the chemist,Oakley Books,the vet,Marlow Dental,the surgery,Hilltop Garage,the school office,Larkwell Bank,Fernpost,the council,the optician".split(","),
    "site": "prizedesk.example,tellow-win.example,fernpost-fee.example,larkwell-secure.example,fastcash.example,velora-club.example,homefirst.example/v,zap4u.example,dealhive.example/go,my-refund.example".split(","),
    # 群发短信的号码就那么几个，反复出现，所以模型认得出来。
    "phone": "07700900172,07700900648,08081 570211,08081 570983,0808157 0355,07700 900 461,02079460118,02079460777".split(","),
    "short": "30214,30990,38051,38477,36303".split(","),
    "word": "WIN,GO,YES,CLAIM,CASH,LUCKY,PLAY,HOT,STAR,TREAT,VIP,TONE".split(","),
}

ORDINARY = {
    "meet": """
{Are you|You} {free|around|about} {<day>|tonight|later|after work}? {Fancy|Thinking of|We might do} <place>{ with <name>|, nothing fancy| if the rain stops|}
{Running|Going to be} {late|about ten minutes behind|a bit late}, {start without me|save me a seat|order me the usual|tell <name>}{ please|; the bus never came|}
{I'm|Im} {outside|at|by} <place>{, where are you| now. Can't see you| in the blue coat|}{?|}
{Let's|Can we} make it <time> instead of <time>{, work is mad today|; <name> has the car|}
{See you|Meet you} at <place> at <time>{, bring the <thing>|. <name> is coming too| then|}
{Can't|Won't be able to} {make it|come} <day>, {sorry|so sorry|gutted}. {Next time|Rain check|Maybe the week after}?
{Table|Booked} for {two|four|six} at <time>{, under <name>|; don't be late|}
{Just|Only just} {left|got off the train|parked}, {be there in five|see you in a sec|nearly at <place>}
""",
    "home": """
{Can you|Could you|Pls} {pick up|grab|get} {milk|bread|eggs|cat food|loo roll|onions|washing powder}{ and {teabags|rice|butter}|} on {your|the} way {home|back}{?|}
{I've|I} {made|put on|burnt} <food>, {it's in the oven|come and get it|don't tell <name>|enough for two days}
{The|That} {washing machine|boiler|kitchen tap|back door|wifi|smoke alarm} is {making that noise again|playing up|leaking|stuck}{; can you look at it <day>|, I've rung <shop>|}
{Bins|Recycling} {tonight|go out tonight}, {it's your turn|don't forget|brown one this week}
{Left|I left} {the|your} <thing> {on the stairs|under the mat|with <name>|at <place>}
{Dog|The dog|Next door's cat} {ate|has eaten|is sitting on} {the|my} {homework|sandwich|<thing>}{ again|. I can't even|, don't ask|}
{Landlord|The plumber|The man} {is coming|comes} {<day>|at <time>}, {can you be in|someone has to be home|I'll let him in}?
{Gran|Mum|Dad} {says hi|is asking for you|wants the recipe back|has a new phone and sends everyone photos of it}
""",
    "study": """
{How did|Hows} {the|your} <subject> {exam|test|revision} {go|going}{?|, mine was awful}
{Have|Did} you {done|finish|start} the <subject> {essay|questions|reading}? {Stuck on|I gave up at|Can't do} {number|page} <1d>
{Lecture|Class|Seminar} {is cancelled|has moved to room <2d>|starts at <time>}{, <name> told me|; tell the others|}
{Can I|Could I} {borrow|copy|photograph} {your|the} <subject> notes{? Missed <day>| please|}
{Passed|I passed|Just passed} <subject>!! {Can't believe it|By two marks|Drinks on me}
{Library|The library} {closes|shuts} at <time>, {I'm on the second floor|saved you a desk|too noisy today}
{Group|Our} {project|presentation}: {who does the slides|<name> hasn't done anything|due <day>, not next week}
""",
    "work": """
{Meeting|The meeting|Call} {moved to|is now at|pushed to} <time>{, room <2d>|; same link|, sorry for the short notice}
{Can you|Could you} {cover|swap|take} my {shift|slot} {<day>|on <day>}? {I'll owe you|<name> can't|Will do yours back}
{Boss|The boss|<name>} {is off sick|is in a good mood|wants the numbers by <time>|asked where you were}
{Just|Only now} {finished|got out|leaving}. {What a day|Never again|Feet are killing me}
{Printer|The printer|Lift} {is broken again|has given up}; {use the one upstairs|<shop> is sending someone}
{Interview|My interview} {went well|was a disaster|is <day>}, {fingers crossed|they asked about <subject>|will ring you after}
{Sending|I'll send|Have sent} you the {draft|spreadsheet|photos} {now|tonight|by <time>}, {see what you think|don't laugh|ignore page <1d>}
""",
    "feelings": """
{Thinking of|Thinking about} you {today|this morning}. {Call|Ring} whenever{, day or night|}
{Happy|Very happy} birthday {<name>|you|old thing}! {Cake|Party|Hugs} {<day>|later|when I see you}
{So|Really} sorry about {yesterday|last night|what I said}. {I was tired|Can we talk|It came out wrong}
{Miss|I miss} {you|your face|our walks}{ loads| already| so much|}{. Come home soon| x|}
{Good|Best of} luck {today|with {the|your} {test|interview|match|move}}{! You'll be great|, tell me everything| from all of us|}
{Feeling|I feel} {rotten|much better|a bit low|like a new person} today{, thanks for asking|. Slept all afternoon|}
{Love you|Night night|Sleep well}{ x| xx|, big day tomorrow| and mind the step|}
""",
    "chat": """
{Lol|Haha|Ha} {that's so <name>|no way|stop it|typical|I can't breathe}
{Did you|You} {see|watch|hear} {the match|that programme|the news|the storm|<name>'s hair} last night? {Unreal|What did you think|I fell asleep}
{Ok|Okay|Kk|Right} {cool|no worries|see you then|will do|got it|sounds good}
{Yes|Yep|Yeah} {please|go on then|that works|I did|she told me}
{No|Nope|Nah} {not yet|idea|worries|he's at <place>|I'm good thanks}
{Guess|You'll never guess} who {I saw|was} at <place>: <name>! {In a suit|With a parrot|Didn't even say hello}
{It's|It is} {snowing|boiling|hailing|so windy} here{, {proper|real} <day> weather|! You?|; washing's ruined}
{Forgot|I forgot} to {say|ask|tell you}: {<name> is engaged|did the cat come back|the <thing> is yours}
{He|She} said "{maybe|not in a million years|ask me <day>|over my dead body}"{, what does that even mean| lol| and walked off}
"{Five|Ten} minutes" {she said|he said|they said}{. That was an hour ago| ... I'm still here|}
""",
    "travel": """
{Train|The train|Flight|Ferry} is {delayed|cancelled|packed|on time for once}{, now due <time>|. Stuck at <place>|}
{Landed|We landed|Arrived}! {Hot|Raining|Bags took ages}, {heading to|straight to} {the hotel|<name>'s|bed}
{Which|What} {platform|gate|terminal|stop} {is it|do I need}{? Can't find the board| for <place>|}
{Left|I left} my <thing> on the {bus|train|plane}, {rang lost property|so annoyed|can you believe it}
{Traffic|The traffic} is {terrible|awful|solid} {near|by} <place>{; take the back road|, be another half hour|}
Can you {drop|collect} {me|us|<name>} {at|from} the {station|airport} {<day>|at <time>}?
""",
    "sport": """
{We|<team>} {won 3-1|won 2-0|lost 4-0|lost 2-1|drew 2-2|drew 0-0}{! <name> scored|, robbed|. Ref was blind}
{Training|Practice|Match} is {off|on|moved} {<day>|tonight}, {pitch is flooded|bring both shirts|coach says <time> sharp}
{Did|Have} you {see|watch} <team>? {What a goal|Shocking defending|I had to leave at half time}
{Run|Swim|Ride} {tomorrow|<day>}? {Slow|Easy|Just the short} one, {my knee is bad|I promise|<name> is keen}
{Need|We need} {one more|two more|a keeper} for {five-a-side|netball|doubles} {<day>|at <time>}, you in?
""",
    "health": """
{Doctor|The doctor|Nurse} says {it's just a cold|rest for a week|the x-ray is fine|come back <day>}
{How's|Hows} {your|the} {back|cough|ankle|little one}{? Any better| today|}
{Took|I took} {the dog|<name>|the kids} to <shop>, {all clear|two hours wait|jab done}
{Dentist|My dentist} {was fine|hurt|says no more toffee}{, face is numb lol|; home by <time>|}
{Baby|The baby} {slept|didn't sleep} {through|a wink}{! A miracle|. Send coffee|}
""",
    # 下面三个话题的正常短信，用的正是垃圾短信爱用的词。
    "money": """
{I owe|Do I owe} you <money> {for|from} {the taxi|lunch|the tickets|<name>'s present}{, what's your account number again|? Will bring cash|}
{Can you|Could you} {lend|spot} me <money> {till|until} <day>? {Card|My card} {got eaten|won't work|expired}
{Transferred|I've sent|Paid} the {rent|deposit|bills}{, check your account| this morning|; your half is <money>|}
{Have you|Did you} claim{ed|} {the|your} {expenses|overtime|train refund}? {Deadline|Finance says} {is <day>|by <time>}
{Got|I got} {paid|my bonus|a tax refund} {today|at last}{! Dinner's on me|, already gone lol|. {Cash|Money} for the <thing>}
{Tickets|Two tickets} came to <money> {each|in total}, {pay me whenever|no rush|<name> paid cash}
{Sold|I sold} the {bike|sofa|old phone} for <money>{! Free space at last| cash|, the buyer didn't even call}
Urgent!! {call|ring} {me|home} {when you get this|now}, {the car's been clamped|locked out again|<name> has chickenpox}
""",
    "notices": """
Your {appointment|check-up} {at|with} <shop> is {<day>|on <day>} at <time>. {Reply|Text} {C to cancel|YES to confirm|if you can't come}
{Your|The} {parcel|order|prescription|book} is {ready to collect|ready} {at|from} <shop>{ until <time>|. Bring the card|}
Your {code|login code|verification code} is <6d>. {Don't|Never} {share it|tell it to anyone}{, not even us|}
<shop>: your {parcel|delivery} {was left with <name> at no. <2d>|will arrive <day>|is 3 stops away}{. No action needed|}
Larkwell Bank: your balance is £<3d>.<2d>{ on <day>|. We never ask for your PIN by text|; {payday|wages} received}
{Reminder|Friendly reminder} from <shop>: {books are due <day>|your car is booked in at <time>|we close early on <day>}
{Thanks|Thank you} for {your order|shopping with us}. Number <5d>, {total £<2d>.<2d>|paid by card}, {collect|delivered} <day>
{Your|The} {free|yearly} {eye test|flu jab|service} is due; {ring|call} <shop> {to book|when you can}
""",
    "luck": """
{We|I|<name>} {won|WON} {the|a} {raffle|quiz|pub quiz|cake competition|tombola}! {Prize|First prize} {was|is} {a box of biscuits|<food>|a goldfish|free parking for a week}
{Congrats|Congratulations|Well done} on {the|your} {new job|baby|house|prize|award}{!! Celebrate <day>|, <name> told me|. Call me}
{Got|I've got} {free|two spare|a pair of} tickets for {the match|the concert|the panto} {<day>|}, {want one|coming|first to reply gets them}?
{Free|There's free} {pizza|cake|coffee} {in|at} <place>{, hurry|! Go go go| while it lasts|}
{Lucky|You're so lucky}: {holiday|a week off|two weeks} in the sun{ and a new phone|} {while I'm at work|and you complain}
{Claim|You can claim} your <thing> {at|from} reception, {someone handed it in|<name> found it}{ lol|}
{Who|Guess who} {wins|won} the {office sweepstake|fantasy league|bet}? {Me|<name>}! {Pay up|Cash please|<money>, thank you}
{Click|Use} the link {<name>|I} sent for {the|your} {photos|quiz|playlist}, {the old one|other one} {expired|doesn't work}
""",
}

UNWANTED = {
    "winner": """
{CONGRATULATIONS|Congrats|Well done}! {You have|You've|Your number has} {won|been picked for} <prize>. {To claim|Claim it}: {call|ring} <phone>{ before <day>| now|}{. Ref <5d>|}
{WINNER|Lucky winner|Final notice}! {Your mobile|No. ending <3d>} {won|is owed} {<bigmoney>|<prize>}. {Txt|Text|Send} <word> to <short>{. 18+ only| (£1.50/msg)|}
{This is|It is} {our 2nd|the last} {attempt|try} to {reach|contact} you about {<prize>|your <bigmoney> award}. {Phone|Dial} <phone>{, quote <4d>|}
{As a valued|For being a loyal} {customer|member}, {you get|we picked you for} <prize>{, 100% free|}! {Tap|Visit|Go to} <site>
{Today's|This week's} draw: <bigmoney> {CASH|in cash} {unclaimed|must go}. {Reply|Txt back} <word>{; offer ends <day>|}. {Stop? send END to <short>|T&Cs apply}
U {have been|r} {chosen|selected} 2 {receive|get} {<bigmoney>|<prize>}! {Call|Ring} <phone> {now|from a landline|b4 <day>}{. Box <4d>|}
""",
    "cash": """
{Need|Short of} {cash|money} {fast|today}? {Borrow|Get} up to <bigmoney> {with no checks|in minutes}, {apply|details} <site>{. Reply STOP to opt out|}
{Bad|Poor} credit? {No problem|We still say yes}. <bigmoney> {in your account|paid} {today|by <time>}. {Call|Ring} <firm> <phone>
{You may be|You are} {owed|entitled to} <bigmoney> for {your accident|mis-sold insurance|that old loan}. {Text|Reply} {YES|<word>} {to start|and we do the rest}
{Debts|Bills} {over|above} <bigmoney>? {Write off|Wipe} {most|80%} of it {legally|with a new scheme}. {Reply INFO|See <site>|Free call <phone>}
{Double|Triple} your {savings|coins} in {7 days|a month}{! Trusted by thousands| - our robot trades for you|}. {Join|Start with £100} <site>
""",
    "phone": """
{Free|Get} {ringtones|games|wallpapers} {every week|for your phone}! {Txt|Send} <word> to <short>{. £<1d>/wk until you stop|; first one free|}
{Upgrade|Swap} {your mobile|your old handset} {today|free}: {newest models|unlimited texts}, {half price line rental|no deposit}. {Call|Ring} <firm> <phone>{ now|}
{Your|Ur} {contract|tariff|plan} {ends soon|is due for upgrade}. {<firm> has|We've} {a free handset|double data} for u, {reply|txt} {YES|<word>}{ by <day>|}
{Hot|New} {tones|chart hits} this week: {txt|text} {the artist|<word>} to <short>{, charged at 150p|. Std rates}
{Want|Fancy} {500|1000} {free texts|minutes}? {Only|From} £<1d> a month {with|on} <firm>; {call|freephone} <phone>
""",
    "adult": """
{Someone|A secret admirer} {near you|from your street} {wants to meet|fancies u}! {Find out who|Guess who}: {call|dial} <phone>{, 150ppm|}
{Lonely|Bored|Single} {tonight|2nite}? {Chat live|Flirt} with {locals|girls|guys} on <phone>{. 18+|; £1/min}
{Hi|Hey} {hun|babe|sexy}, {saw ur profile|got your pics}. {Mine are on|Send one back via} <site>{ x|, free to join}
{<1d> people|<2d> singles} {in your area|close by} {are online|viewed you}. {Txt|Text} {MATCH|<word>} to <short>{ to see them| (25p)|}
""",
    "account": """
<firm>: {your account|online access} is {locked|suspended|on hold}. {Verify|Confirm} {your details|your PIN} {at|here} <site>{ within 24h| or it will be closed|}
{We noticed|There was} a {payment|login} of <bigmoney> {from a new device|abroad}. {Not you? Go to|Cancel it:} <site>
{Your|The} {parcel|delivery|package} {could not be delivered|is held}: {unpaid fee|customs charge} of £<1d>.<2d>. {Pay|Settle} {at|via} <site>
{Tax office|HM Refunds|Road toll desk}: {you have a refund|a penalty is due} of <bigmoney>. {Act today|Respond by <day>}: <site>
{Your|Ur} {card|mobile bill|TV licence|subscription} {has expired|was declined|payment failed}. {Update|Fix it} {now|to avoid a fine}: <site>
""",
    "offers": """
{Flash sale|Today only|Weekend deal}! {<2d>% off|Half price} {sofas|trainers|sunglasses|kitchens} {at|from} <firm>{, code <word>|}. {Shop|Order}: <site>
{Lose|Drop} {a stone|<1d>kg} {in 2 weeks|without dieting}{! Doctors are amazed|}. {Free trial|First pack free} <site>
{Holiday|Cruise|Flight} {bargain|deal}: {7 nights|2 weeks} {all in|half board} {from|only} £<3d>. {Call|Ring} <firm> <phone>{ quote <word>|}
{Cheap|Designer} {watches|bags|pills|meds} {posted|sent} {discreetly|next day}. {No prescription|Big discounts}, {see|order at} <site>
{Casino|Bingo|Poker} {night|bonus}: {<2d> free spins|£<2d> to play with}, {no deposit|new players}. {Join|Play} <site>{ 18+|}
{Members of|You're on the list for} <firm> {get in free|have free drinks} {<day>|all night}. {Show this text|Reply STOP to leave}
""",
    # 下面三个话题（DISGUISED）没有明显的词：装成陌生人、家人、招聘。
    "stranger": """
{Hi|Hello|Hey}, {is this|am I speaking to} <name>{ from the golf club|}? {I got|We exchanged} {your number|cards} at the {conference|wedding|yoga class} {last month|in spring}
{Sorry|Oh sorry}, {wrong number|I thought you were <name>}. {You seem|You sound} {kind|polite} though, {where are you from|can we be friends}?
{My|The} {uncle|mentor} {taught|showed} me {a way to trade|how to read the market}, {I made|we made} {a lot|enough for a car} {this week|already}. {Want to learn|I can show you}?
{Dear|Good day} {friend|sir|madam}, {I am|this is} {a widow|a lawyer|Mr Grant} {with|holding} {an inheritance|a trust} {for|that needs} {a trusted person|your family name}
""",
    "family": """
{Hi|Hey} {mum|dad}, {this is my new number|I'm on a friend's phone|dropped mine in the sink}. {Save it and|Can you} {text me back here|delete the old one}{ x|}
{Mum|Dad}, {can't talk, mic is broken|calls don't work on this phone}. {Need|I need} {a favour|help with a payment} {today|before <time>}, {will pay you back|can you do it for me}?
{It's me|Your {daughter|son} here}{, long story|}. {Could you|Can you} {settle|send} a {bill|payment} {for me|to a friend}? {My|The} {banking app|new phone} is {blocked for 48h|not set up}
{I'm|We're} {stuck|stranded} {at the airport|abroad}, {wallet and bags gone|robbed}. {Can you|Please} {wire|send} {something|<bigmoney>} {to the hotel|through the agent}{? Don't tell <name>|}
""",
    "job": """
{We|Our team} {saw|received} your {CV|profile}. {Work from home|Flexible hours}, {<2d> minutes a day|no experience}, {paid daily|up to £<3d> a day}. {Interested|Shall I explain}?
{Hello|Hi}, I'm <name> from {a recruitment agency|HR at <firm>}. {Part time|Remote} {role|tasks}: {like videos|rate hotels}, {income every evening|£<3d> weekly}. {Message|Add} me {back|on <phone>}
{The|That} {flat|room} you {asked about|viewed} is {available|yours}. {I'm overseas so|Before the viewing} {send|transfer} {the deposit|first month} and {the agent posts|I'll courier} the keys
{Your|The} {application|form} was {approved|accepted}. {To begin|Before training}, {send|we need} {a photo of your passport|a small registration fee}{, <name>|}
""",
}

DISGUISED = ("stranger", "family", "job")

# 开头和结尾：正常短信偶尔有称呼和告别；垃圾短信常有退订说明，装成熟人的没有。
HELLO = ["Hi <name>, ", "Hey ", "Hey <name>! ", "<name>, ", "Morning! ", "Hiya, ", "Oi ", "Hello dear, ", "Btw ", "Oh and "]
GOODBYE = [" x", " xx", " :)", " Thanks!", " Ta", " Love <name>", " Bye", " lol", " Cheers, <name>", " :-(", " Speak soon", " ok?"]
FOOTER = [" Reply STOP to end", " T&C apply", " {Opt out|To stop}: txt END to <short>", " <firm>, PO Box <4d>", " 18+", " Msg cost £1.50", " Terms: <site>", " Offer ends <day>", " {Don't miss out|Hurry}!"]
SHORTER = {  # 短信里的缩写：两类都用
    "you": "u", "are": "r", "your": "ur", "to": "2", "for": "4", "tonight": "2nite", "tomorrow": "tmrw", "please": "pls", "thanks": "thx",
    "and": "n", "before": "b4", "great": "gr8", "text": "txt", "message": "msg", "because": "coz", "okay": "k",
}


def fill(template, rng):
    """把句式里的选择和空格填上。

    参数:
        template (str): 句式，如 "{Hi|Hey} <name>"
        rng (random.Random): 随机数发生器

    返回:
        str: 填好的一句
    """
    while match := re.search(r"\{([^{}]*)\}", template):  # 从最里层的花括号开始，允许嵌套
        template = template[: match.start()] + pick(match[1].split("|"), rng) + template[match.end() :]
    while match := re.search(r"<(\w+)>", template):
        name = match[1]
        if name[0].isdigit():  # 头一位不是 0
            value = pick("123456789", rng) + "".join(pick("0123456789", rng) for _ in range(int(name[0]) - 1))
        else:
            value = pick(SLOTS[name], rng)
        template = template[: match.start()] + value + template[match.end() :]
    return template


def pick(items, rng):
    """随机取一项。只用 rng.random()：Python 保证它在各个版本上给出同样的数，choice 没有这个保证。

    参数:
        items (list 或 str): 候选
        rng (random.Random): 随机数发生器

    返回:
        取到的一项
    """
    return items[int(rng.random() * len(items))]


def roughen(text, rng):
    """像真人发的短信：全小写、缩写、错字、漏标点，各有一定的可能。

    参数:
        text (str): 工整的一条
        rng (random.Random): 随机数发生器

    返回:
        str: 随意一些的一条
    """
    if rng.random() < 0.12:
        text = text.lower()
    if rng.random() < 0.2:
        text = re.sub(r"[A-Za-z]+", lambda word: SHORTER.get(word[0].lower(), word[0]) if rng.random() < 0.7 else word[0], text)
    if rng.random() < 0.06:  # 交换相邻的两个字母，或者漏掉一个
        places = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
        if places:
            i = pick(places, rng)
            text = text[:i] + (text[i + 1] + text[i] + text[i + 2 :] if rng.random() < 0.5 else text[i + 1 :])
    if rng.random() < 0.2:
        text = re.sub(r"[.,;](?= |$)", "", text)
    return re.sub(r" {2,}", " ", text).strip()


def compose(topics, rng):
    """拼一条短信：选一个话题，一到三句，再加开头、结尾。

    参数:
        topics (dict): 话题 → 句式，一行一个；ORDINARY 或 UNWANTED
        rng (random.Random): 随机数发生器

    返回:
        tuple[str, str]: 工整的一条（用来查重），和弄乱之后的一条（写进文件）
    """
    topic = pick(sorted(topics), rng)
    if topic in DISGUISED and rng.random() < 0.6:  # 装成熟人的垃圾短信难认，约占六分之一就够
        topic = pick(sorted(topics), rng)
    lines = topics[topic].strip().splitlines()
    count = 1 + (rng.random() < 0.55) + (rng.random() < 0.15)
    chosen = []
    while len(chosen) < count:
        line = pick(lines, rng)
        if line not in chosen:
            chosen.append(line)
    if topics is UNWANTED and rng.random() < 0.5:
        chosen = chosen[:1]  # 垃圾短信一句就已经很长
    sentences = [fill(line, rng).strip() for line in chosen]
    text = " ".join(sentence if sentence[-1] in ".?!" or rng.random() < 0.2 else sentence + pick([".", ".", "!", "...", ""], rng) for sentence in sentences)
    if topics is ORDINARY:
        text = (fill(pick(HELLO, rng), rng) if rng.random() < 0.2 else "") + text + (fill(pick(GOODBYE, rng), rng) if rng.random() < 0.25 else "")
    elif topic not in DISGUISED and rng.random() < 0.6:
        text += fill(pick(FOOTER, rng), rng)
    rough = roughen(text, rng)
    return text, rough.upper() if topics is UNWANTED and rng.random() < 0.03 else rough  # 广告爱用大写喊话


def pairs(text):
    """一条短信里相邻的词对，用来判断两条像不像：数字一律当成 0，大小写、标点、撇号不管。

    参数:
        text (str): 短信

    返回:
        set[tuple]: 词对，首尾各补一个空词，所以一个词的短信也有
    """
    words = re.findall(r"[a-z]+|0|[£$€]", re.sub(r"[\d.,]*\d", "0", text.lower().replace("'", "")))
    return set(zip(["", *words], [*words, ""]))


def make_messages(seed=2024):
    """生成全部短信。

    参数:
        seed (int): 随机种子

    返回:
        list[tuple[str, str]]: 每条是（标签，正文），两类混在一起
    """
    rng = random.Random(seed)
    rows, seen, where = [], [], {}  # where：词对 → 含有它的短信的编号，只和共有词对的短信比
    for label, topics, number in (("spam", UNWANTED, NUM_SPAM), ("ham", ORDINARY, NUM_HAM)):
        target = len(rows) + number
        while len(rows) < target:
            clean, text = compose(topics, rng)
            own, shared = pairs(clean), {}  # 查重看工整的那一条：错字和缩写掩盖不了雷同
            for pair in own:
                for other in where.get(pair, []):
                    shared[other] = shared.get(other, 0) + 1
            if len(text) > LONGEST or any(count / (len(own) + len(seen[other]) - count) >= SIMILAR for other, count in shared.items()):
                continue
            for pair in own:
                where.setdefault(pair, []).append(len(rows))
            seen.append(own)
            rows.append((label, text))
    order = sorted(range(len(rows)), key=lambda _: rng.random())
    return [rows[i] for i in order]


def main():
    """写出 messages.tsv。"""
    buffer = io.StringIO()
    # csv 会给含引号的正文加上引号，并把里面的引号写成两个；读的时候也要用 csv，见 ch06/main/example_01_data.py。
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows(make_messages())
    PATH.write_bytes(buffer.getvalue().encode("utf-8"))
    print(f"{PATH}　{PATH.stat().st_size:,} 字节")


if __name__ == "__main__":
    main()
