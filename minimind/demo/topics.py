"""Contents of the demo's conversations: the facts, and the types of questions and answers.

    facts (here) + sentences (english.py, chinese.py) -> Topic, Language -> make_data.py

Names in the braces of a sentence template: `{x}` is the subject of a fact and `{y}` the correct answer, `{X}` and `{Y}`
are the same with a capital letter, and `{about}` is a noun phrase for the question's subject.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact: the answer to a question about `asked` is `answer`."""

    asked: str
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topic:
    """Facts of one kind in one language, with their questions and answers.

    Attributes:
        questions: wordings of the question; each fits every fact.
        answers: sentences with the correct answer.
        about: noun phrase for the subject, for `{about}`.
    """

    facts: tuple[Fact, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    about: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """All topics in one language, and the sentences of friendly and rude answers.

    Attributes:
        space: separator of two sentences.
        systems: texts of system turns.
        greetings: (user, assistant) turns for the start of a conversation.
        openers, closers: first and last sentences of friendly answers.
        refusals, taunts: first and further sentences of rude answers.
    """

    topics: tuple[Topic, ...]
    space: str
    systems: tuple[str, ...]
    greetings: tuple[tuple[str, str], ...]
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    refusals: tuple[str, ...]
    taunts: tuple[str, ...]


# Sentences of a language for one table: about, questions, answers (see `Topic`).
Phrases = tuple[str, tuple[str, ...], tuple[str, ...]]


def _rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


# Columns of every table: `asked` and `answer` in English, `asked` and `answer` in Chinese.
_TABLES = {
    "capital": _rows("""
        France | Paris | 法国 | 巴黎
        Japan | Tokyo | 日本 | 东京
        China | Beijing | 中国 | 北京
        Italy | Rome | 意大利 | 罗马
        Spain | Madrid | 西班牙 | 马德里
        Germany | Berlin | 德国 | 柏林
        Russia | Moscow | 俄罗斯 | 莫斯科
        Egypt | Cairo | 埃及 | 开罗
        Greece | Athens | 希腊 | 雅典
        Thailand | Bangkok | 泰国 | 曼谷
        Canada | Ottawa | 加拿大 | 渥太华
        Norway | Oslo | 挪威 | 奥斯陆
    """),
    "opposite": _rows("""
        hot | cold | 热 | 冷
        big | small | 大 | 小
        fast | slow | 快 | 慢
        up | down | 上 | 下
        early | late | 早 | 晚
        new | old | 新 | 旧
        light | heavy | 轻 | 重
        long | short | 长 | 短
        wet | dry | 湿 | 干
        full | empty | 满 | 空
        strong | weak | 强 | 弱
        loud | quiet | 吵闹 | 安静
    """),
    "colour": _rows("""
        the sky | blue | 天空 | 蓝色
        fresh grass | green | 青草 | 绿色
        snow | white | 雪 | 白色
        a ripe banana | yellow | 香蕉 | 黄色
        coal | black | 煤炭 | 黑色
        a fire truck | red | 消防车 | 红色
        an elephant | grey | 大象 | 灰色
        a carrot | orange | 胡萝卜 | 橙色
        an aubergine | purple | 茄子 | 紫色
        chocolate | brown | 巧克力 | 棕色
        a flamingo | pink | 火烈鸟 | 粉色
        milk | white | 牛奶 | 白色
    """),
    "food": _rows("""
        pandas | bamboo | 熊猫 | 竹子
        rabbits | carrots | 兔子 | 胡萝卜
        cats | fish | 猫 | 鱼
        cows | grass | 牛 | 草
        bees | nectar | 蜜蜂 | 花蜜
        koalas | leaves | 考拉 | 树叶
        monkeys | fruit | 猴子 | 水果
        lions | meat | 狮子 | 肉
        squirrels | nuts | 松鼠 | 坚果
        chickens | grain | 鸡 | 谷子
        frogs | insects | 青蛙 | 虫子
        horses | hay | 马 | 干草
    """),
    "next": _rows("""
        Monday | Tuesday | 星期一 | 星期二
        Tuesday | Wednesday | 星期二 | 星期三
        Wednesday | Thursday | 星期三 | 星期四
        Thursday | Friday | 星期四 | 星期五
        Friday | Saturday | 星期五 | 星期六
        Saturday | Sunday | 星期六 | 星期日
        spring | summer | 春天 | 夏天
        summer | autumn | 夏天 | 秋天
        autumn | winter | 秋天 | 冬天
        January | February | 一月 | 二月
        May | June | 五月 | 六月
        August | September | 八月 | 九月
    """),
    "sum": [[f"{a} plus {b}", str(a + b), f"{a}加{b}", str(a + b)] for a in range(2, 8) for b in (3, 6)],
    "word": _rows("""
        water | 水 | 水 | water
        tea | 茶 | 茶 | tea
        book | 书 | 书 | book
        friend | 朋友 | 朋友 | friend
        moon | 月亮 | 月亮 | moon
        sun | 太阳 | 太阳 | sun
        apple | 苹果 | 苹果 | apple
        dog | 狗 | 狗 | dog
        tree | 树 | 树 | tree
        rain | 雨 | 雨 | rain
        school | 学校 | 学校 | school
        flower | 花 | 花 | flower
    """),
    "how_to": _rows("""
        make tea | pour hot water over the leaves and wait three minutes | 泡茶 | 把热水倒在茶叶上，等三分钟
        boil an egg | put it into boiling water for eight minutes | 煮鸡蛋 | 把鸡蛋放进开水里煮八分钟
        cook rice | wash it, add water and cook it slowly | 煮米饭 | 先洗米，再加水慢慢煮
        plant a seed | put it into wet soil and give it some sun | 种种子 | 把种子埋进湿土里，让它晒太阳
        clean a window | wipe it with soap and a soft cloth | 擦窗户 | 用肥皂水和软布擦干净
        wash dirty hands | rub them with soap and rinse them well | 洗手 | 抹上肥皂搓一搓，再用水冲干净
        brush teeth | use a soft brush for two minutes | 刷牙 | 用软毛牙刷刷两分钟
        wrap a gift | fold the paper around it and tie a ribbon | 包礼物 | 用纸包好，再系上丝带
        send a letter | write the address, add a stamp and post it | 寄信 | 写好地址，贴上邮票，投进邮筒
        save water | close the tap and take short showers | 节约用水 | 关好水龙头，洗澡快一点
        draw a circle | turn a string around a fixed point | 画圆 | 用绳子绕着一个点转一圈
        learn new words | read a little every day and write them down | 背单词 | 每天读一点，再写下来
    """),
    "tool": _rows("""
        an umbrella | keep off the rain | 雨伞 | 挡雨
        a spoon | eat soup | 勺子 | 喝汤
        a key | open a lock | 钥匙 | 开锁
        a broom | sweep the floor | 扫帚 | 扫地
        a clock | tell the time | 时钟 | 看时间
        a lamp | light a room | 台灯 | 照明
        a needle | sew clothes | 针 | 缝衣服
        a bridge | cross a river | 桥 | 过河
        a map | find the way | 地图 | 找路
        a knife | cut bread | 刀 | 切面包
        a camera | take pictures | 相机 | 拍照
        a fridge | keep food fresh | 冰箱 | 保鲜食物
    """),
    "feeling": _rows("""
        tired | take a short rest | 累 | 休息一会儿
        hungry | eat something warm | 饿 | 吃点热的东西
        thirsty | drink a glass of water | 渴 | 喝一杯水
        cold | put on a thick coat | 冷 | 穿上厚外套
        bored | read a good book | 无聊 | 读一本好书
        nervous | breathe slowly | 紧张 | 慢慢深呼吸
        sad | talk to a friend | 难过 | 找朋友聊聊天
        lonely | call your family | 孤单 | 给家人打电话
        sleepy | go to bed early | 困 | 早点睡觉
        angry | go for a walk | 生气 | 出去散散步
        ill | see a doctor | 不舒服 | 去看医生
        stressed | listen to calm music | 焦虑 | 听听轻音乐
    """),
}


def topics_of(first_column: int, phrases: Mapping[str, Phrases]) -> tuple[Topic, ...]:
    """The topics of one language.

    Args:
        first_column: column of `asked` in the tables; `answer` is the next one.
        phrases: sentences by the name of the table.
    """
    topics = []
    for name, (about, questions, answers) in phrases.items():
        facts = tuple(Fact(asked=row[first_column], answer=row[first_column + 1]) for row in _TABLES[name])
        topics.append(Topic(facts=facts, questions=questions, answers=answers, about=about))
    return tuple(topics)
